"use strict";
(() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const figures = JSON.parse(document.getElementById("figures").textContent);

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  const axis = (original) => ({
    ...original,
    gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--soft"),
    tickfont: { color: colour("--soft") }, title: { ...original.title, font: { color: colour("--soft"), size: 13 } },
  });

  const themed = ({ data, layout }) => {
    const palette = colour("--series").split(",").map((entry) => entry.trim());
    const symbols = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon"];
    const dashes = ["solid", "dash", "dot", "dashdot"];
    const traces = data.map((trace, index) => {
      const shade = palette[index % palette.length];
      const painted = { ...trace, marker: { color: shade, size: 7, symbol: symbols[index % symbols.length] } };
      if (trace.type !== "bar") painted.line = { color: shade, width: 2, dash: dashes[Math.floor(index / palette.length) % dashes.length] };
      else painted.marker = { color: shade };
      if (trace.error_y) painted.error_y = { ...trace.error_y, color: trace.type === "bar" ? colour("--ink") : shade };
      return painted;
    });
    return {
      data: traces,
      layout: {
        ...layout, autosize: true, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
        font: { family: "system-ui, sans-serif", size: 13, color: colour("--ink") },
        legend: { ...layout.legend, font: { color: colour("--ink") } },
        hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      },
    };
  };

  const paint = () => {
    root.dataset.theme = chosen ?? (dark.matches ? "dark" : "light");
    document.querySelectorAll("[data-plot]").forEach((box) => {
      const { data, layout } = themed(figures[box.dataset.plot]);
      Plotly.react(box, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    });
  };

  document.getElementById("theme").addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    paint();
  });
  dark.addEventListener("change", paint);
  paint();

  const keyOf = (cell) => (cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value));
  const before = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  document.querySelectorAll("table.sortable th").forEach((head) => {
    head.querySelector("button").addEventListener("click", () => {
      const table = head.closest("table");
      const column = [...head.parentNode.children].indexOf(head);
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const body = table.tBodies[0];
      [...body.rows].sort((a, b) => sign * before(keyOf(a.cells[column]), keyOf(b.cells[column]))).forEach((row) => body.append(row));
    });
  });
})();
