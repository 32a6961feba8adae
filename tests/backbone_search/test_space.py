import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tenfold.cost import count_flops, count_parameters
from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.blocks import round8
from tenfold.systems.backbone_search.detector.mobile import MobileBackbone, mobiledet
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan, YOLOXLite, yolox
from tenfold.systems.backbone_search.objectives.costs import _mobile, count_costs, peak_activations
from tenfold.systems.backbone_search.objectives.limits import violations
from tenfold.systems.backbone_search.objectives.lookup_table import LookUpTable
from tenfold.systems.backbone_search.space.darknet_space import DarknetSpace
from tenfold.systems.backbone_search.space.mobile_space import (
    SMALL_SEED,
    MobileSeed,
    MobileSpace,
    count_by_enumeration,
)
from tenfold.systems.backbone_search.space.published import FNA_RETINANET, FNA_SSDLITE, parse_fna
from tenfold.systems.backbone_search.space.search_space import SearchSpace

NECK = {"neck": (16, 16, 16), "head": 16, "num_classes": 2}


def test_the_default_seed_has_its_known_size():
    space = MobileSpace()
    backbone = MobileBackbone(space.plan(space.seed))
    assert count_parameters(backbone) == 1_994_400
    for side, adds in ((320, 574_304_000), (416, 970_573_760)):
        detector = DetectorPlan(backbone.plan)
        outside = [r for r in YOLOXLite(detector).layout(side, side).records if not r.name.startswith("backbone.")]
        assert count_costs(detector, side, side)["multiply_adds"] - sum(r.multiply_adds for r in outside) == adds


def test_counted_costs_are_those_of_torch_for_random_genomes():
    generator = np.random.default_rng(0)
    full = MobileSpace(SMALL_SEED, mode="full")
    gated = MobileSpace(MobileSeed(**{**SMALL_SEED.__dict__, "se": True}))
    image = torch.zeros(1, 3, 32, 64)
    for number in range(50):
        space = (full, gated)[number % 2]
        plan = space.plan(space.random(generator))
        backbone = MobileBackbone(plan)
        adds, parameters = _mobile(plan, 32, 64)
        assert (2 * adds, parameters) == (count_flops(backbone, image), count_parameters(backbone))
    light = DarknetSpace(yolox("nano").backbone)
    for last in (plan, light.plan(light.random(generator))):
        detector = YOLOXLite(DetectorPlan(last, **NECK))
        counted = count_costs(detector.plan, 32, 64)
        assert counted["parameters"] == count_parameters(detector)
        assert 2 * counted["multiply_adds"] == count_flops(detector, image)
    assert 0 < peak_activations(detector, 32, 32) < peak_activations(detector, 64, 32)


def test_widths_round_to_eight_and_collapse():
    assert [round8(v) for v in (1, 11.9, 12, 20, 28)] == [8, 8, 16, 24, 32]
    space = MobileSpace(SMALL_SEED)
    assert space.genes["s1.width"] == (8, 16, 24)  # six multipliers, three widths


def test_genomes_that_stand_for_one_network_are_one():
    space = MobileSpace(SMALL_SEED, mode="full")
    shallow = {**space.seed, "s2.depth": 1}
    other = {**shallow, "s2.l2.expand": 8, "s2.l3.kernel": 7}
    assert space.digest(shallow) == space.digest(other) != space.digest(space.seed)
    assert space.plan(shallow) == space.plan(other)
    tucker = {**space.seed, "s3.l1.op": "tucker"}
    assert space.digest(tucker) == space.digest({**tucker, "s3.l1.expand": 2})
    assert space.complete(space.canonical(other)).keys() == space.genes.keys()
    assert set(space.active(shallow)) == set(space.canonical(shallow))


@pytest.mark.parametrize("per_stage", [True, False])
def test_size_of_the_space_is_counted_after_canonicalisation(per_stage):
    tiny = MobileSeed(
        16, (16, 16, 16, 16), (1, 1, 2, 1), (1, 4, 4, 4), (3,) * 4, (2,) * 4, (1, 2, 3), (0.5, 0.625), (2,), (0, 1, 3)
    )
    space = MobileSpace(tiny, per_stage=per_stage, sizes=[(32, 32), (64, 64)])
    assert space.size() == count_by_enumeration(space)
    full = MobileSpace(tiny, mode="full", per_stage=True)
    # 2 widths; 3 kernels of two operators with 2 expansions (stage 1: one) and of Tucker blocks; 3 depths in stage 3
    assert full.size() == (2 * 3 * 3) * (2 * 3 * 5) * (2 * 3 * 3 * 5) * (2 * 3 * 5)
    assert MobileSpace().size() > 1e15


def test_uniform_families_shrink_and_hold_the_seed():
    space = MobileSpace(SMALL_SEED)
    for family in space.uniform()[:3]:
        costs = [count_costs(DetectorPlan(space.plan(g), **NECK), 96, 128)["multiply_adds"] for g in family]
        assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1] and family[0] == space.seed
    light = DarknetSpace(yolox("nano").backbone)
    assert all(family[0] == light.seed for family in light.uniform())
    assert light.plan(light.seed) == yolox("nano").backbone


def test_own_spaces_and_what_they_refuse():
    space = SearchSpace({"a.x": (1, 2), "b": ("p", "q")}, canonical=lambda g: g if g["b"] == "p" else {"b": "q"})
    assert space.size() == 3 and space.active({"a.x": 1, "b": "q"}) == ["b"]
    assert json.loads(json.dumps(space.seed)) == space.seed
    for genes in ({}, {"a": ()}, {"a": (1, 1)}, {"a": ((1,),)}):
        with pytest.raises(UserError):
            SearchSpace(genes)
    cases = {"lacks 'b'": {"a.x": 1}, "choices": {"a.x": 3, "b": "p"}, "no gene": {"a.x": 1, "b": "p", "c": 1}}
    for word, genome in cases.items():
        with pytest.raises(UserError, match=word):
            space.check(genome)
    with pytest.raises(UserError):
        MobileSpace(MobileSeed(widths=(16, 24)))
    with pytest.raises(UserError):
        MobileSpace(sizes=[(100, 100), (200, 200)])


def test_published_strings_are_parsed_and_never_run():
    plan = parse_fna(FNA_SSDLITE)
    assert [len(stage) for stage in plan.stages] == [1, 1, 4, 3, 4, 3, 1] and plan.taps == (2, 4, 6)
    assert plan.stages[3][1].kernel == 7 and parse_fna(FNA_RETINANET).stages[5][2].expansion == 3
    MobileBackbone(plan)
    for text in ("__import__('os').system('x')", "[[16, 24], ['k5'], 2]", "[[16,24],['k5_e6'],2]", "[" * 5000):
        with pytest.raises(UserError):
            parse_fna(text)
    with pytest.raises(UserError):
        mobiledet("gpu")


def test_limits_count_only_what_is_over():
    assert violations({"parameters": 150}, {"parameters": 100}) == {"parameters": 0.5}
    assert violations({"parameters": 50}, {"parameters": 100}) == {"parameters": 0}
    with pytest.raises(UserError, match="no cost"):
        violations({"parameters": 1}, {"latency_ms": 3})
    with pytest.raises(UserError, match="positive"):
        violations({"parameters": 1}, {"parameters": 0})


def test_a_look_up_table_adds_up_blocks_and_is_refused_where_it_orders_otherwise(tmp_path):
    space = MobileSpace(SMALL_SEED, mode="full", per_stage=True)
    generator, template = np.random.default_rng(0), DetectorPlan(space.plan(space.seed), **NECK)
    plans = [replace(template, backbone=space.plan(space.random(generator))) for _ in range(8)]
    met = []

    def timer(modules):  # as if every multiply-add took its time
        met.extend(modules)
        return {name: count_flops(module, *inputs) / 2e6 for name, (module, inputs) in modules.items()}

    table = LookUpTable(template, 32, 64, timer)
    whole = [count_costs(plan, 32, 64)["multiply_adds"] / 1e6 for plan in plans]
    assert [table.milliseconds(plan) for plan in plans] == pytest.approx(whole)
    assert len(met) == len(set(met)) == len(table.entries) and table.check(plans, whole) == pytest.approx(1)
    table.save(tmp_path / "table.json")
    again = LookUpTable(template, 32, 64, lambda modules: pytest.fail("measured twice"))
    again.load(tmp_path / "table.json")
    assert again.milliseconds(plans[3]) == pytest.approx(whole[3])
    with pytest.raises(UserError, match="rank correlation"):
        table.check(plans, [-value for value in whole])
    (tmp_path / "table.json").write_text("[1]")
    with pytest.raises(UserError, match="no look-up table"):
        again.load(tmp_path / "table.json")
    with pytest.raises(UserError, match="mobile backbones"):
        table.milliseconds(yolox("nano", 2))
