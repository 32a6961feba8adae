"use strict";
(() => {
  const PRINT_WIDTH = 640;
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const hovers = window.matchMedia("(hover: hover)").matches;
  const figures = JSON.parse(document.getElementById("figures").textContent);

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };

  const themedAxis = (axis) => ({
    ...axis,
    gridcolor: colour("grid"),
    linecolor: colour("line"),
    zerolinecolor: colour("soft"),
    tickfont: { color: colour("soft"), size: 12 },
    title: { ...axis.title, font: { color: colour("soft"), size: 13 } },
  });

  const themedScene = (scene) => ({
    ...scene,
    ...Object.fromEntries(["xaxis", "yaxis", "zaxis"].map((name) => [name, { ...themedAxis(scene[name]), showbackground: false }])),
  });

  const themedTrace = (trace, shown) => {
    const shade = colour(`series-${trace.meta}`);
    const themed = { ...trace, visible: shown, marker: { color: shade, ...trace.marker } };
    if (trace.type.startsWith("scatter") && trace.type !== "scatter3d") themed.line = { ...trace.line, color: shade };
    if (trace.error_y) themed.error_y = { ...trace.error_y, color: trace.type === "bar" ? colour("ink") : shade };
    return themed;
  };

  const toggles = [...document.querySelectorAll(".legend button")];
  const isShown = (plot, trace) =>
    toggles.every((button) => button.dataset.plot !== plot || Number(button.dataset.trace) !== trace || button.ariaPressed === "true");

  const paintPlot = (id, width) => {
    const { data, layout } = figures[id];
    const traces = data.map((trace, index) => themedTrace(trace, isShown(id, index)));
    const themed = {
      ...layout,
      width,
      dragmode: hovers ? "zoom" : false, // a finger on a plot scrolls the page
      ...(layout.scene ? { scene: themedScene(layout.scene) } : { xaxis: themedAxis(layout.xaxis), yaxis: themedAxis(layout.yaxis) }),
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("ink") },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink"), size: 13 }, namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("ink") },
      uirevision: "kept", // a zoom survives a change of theme
    };
    const config = {
      responsive: true,
      displaylogo: false,
      displayModeBar: hovers ? "hover" : false,
      scrollZoom: false, // a wheel over a plot scrolls the page
      modeBarButtons: layout.scene ? [["toImage", "zoom3d", "tableRotation", "resetCameraDefault3d"]] : [["toImage", "resetScale2d"]],
      toImageButtonOptions: { format: layout.scene ? "png" : "svg", filename: id },
    };
    Plotly.react(document.getElementById(id), traces, themed, config);
  };
  const paint = (width) => Object.keys(figures).forEach((id) => paintPlot(id, width));

  toggles.forEach((button) =>
    button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
      paintPlot(button.dataset.plot);
    }),
  );

  document.getElementById("theme").addEventListener("click", () => {
    const current = root.dataset.theme ?? (dark.matches ? "dark" : "light");
    root.dataset.theme = current === "dark" ? "light" : "dark";
    paint();
  });
  dark.addEventListener("change", () => paint());

  let themeOfScreen;
  window.addEventListener("beforeprint", () => {
    themeOfScreen = root.dataset.theme;
    root.dataset.theme = "light";
    paint(PRINT_WIDTH);
  });
  window.addEventListener("afterprint", () => {
    if (themeOfScreen) root.dataset.theme = themeOfScreen;
    else delete root.dataset.theme;
    paint();
  });

  const compare = (a, b) => {
    if (a.dataset.key !== undefined && b.dataset.key !== undefined) return Number(a.dataset.key) - Number(b.dataset.key);
    return a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  };
  const missing = (cell) => cell.textContent === "–";
  const sortBy = (head) => {
    const table = head.closest("table");
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    head.ariaSort = sign === 1 ? "ascending" : "descending";
    const cell = (row) => row.cells[head.cellIndex];
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => missing(cell(a)) - missing(cell(b)) || sign * compare(cell(a), cell(b)));
    table.tBodies[0].append(...rows);
  };
  document.querySelectorAll("table.sortable thead button").forEach((button) =>
    button.addEventListener("click", () => sortBy(button.closest("th"))),
  );

  paint();
})();
