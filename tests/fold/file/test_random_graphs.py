"""Random graphs are folded to the mean of the noisy network, which is linear in every mask, or refused."""

import random

import numpy as np
import pytest
from support.noisy_files import FLOAT, folded, graph_model, node, run

pytestmark = pytest.mark.integration


def random_nodes(rng):
    """Masks, scales, gains, sums and dropouts in random order; often no dropout that anybody would write."""
    nodes, plain, masks, drawn = [], ["r", "h"], [], []

    def add(op, inputs, **attributes):
        nodes.append(node(op, inputs, f"v{len(nodes)}", **attributes))
        return nodes[-1].output[0]

    for _ in range(rng.randrange(4, 14)):
        x, number = rng.choice(plain), rng.choice(["0.3", "0.7", "0.5"])
        match rng.randrange(12):
            case 0:
                drawn.append(add("RandomUniformLike", x))
            case 1 | 2 | 3 if drawn:
                pair = rng.choice([f"{drawn[-1]} {number}", f"{number} {drawn[-1]}"])
                decided = add(rng.choice(["Less", "Greater", "LessOrEqual", "GreaterOrEqual"]), pair)
                if rng.random() < 0.3:
                    plain.append(add("Where", rng.choice([f"{decided} {x} 0", f"{decided} 0 {x}"])))
                else:
                    masks.append(add("Cast", decided, to=FLOAT))
            case 4 | 5 if masks:
                plain.append(add("Mul", rng.choice([f"{x} {masks[-1]}", f"{masks[-1]} {x}"])))
            case 6 | 7:
                plain.append(add("Div", f"{plain[-1]} {number}"))
            case 8:
                plain.append(add("Mul", f"{plain[-1]} {rng.choice([number, '1/0.7', '2', '1.2'])}"))
            case 9:
                plain.append(add("Add", f"{x} {rng.choice(plain)}"))
            case 10:
                plain.append(add("Dropout", f"{x} 0.3 true"))
            case 11 if masks:
                masks.append(rng.choice([add("Div", f"{masks[-1]} {number}"), add("Sub", f"1 {masks[-1]}")]))
    return [*nodes, node("Identity", plain[-1], "z")]


def test_random_graphs_are_folded_to_the_mean_of_the_noisy_network_or_refused(tmp_path):
    rng, rows, folds, refusals = random.Random(3), 20_000, 0, 0
    x = np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)
    for _ in range(120):
        report = folded(graph_model(random_nodes(rng)), tmp_path)
        refusals += not report
        if report.folded:
            folds += 1
            noisy = run(tmp_path / "in.onnx", x.repeat(rows, 0))[0].astype(np.float64)
            error = np.abs(noisy.mean(0) - run(tmp_path / "out.onnx", x)[0][0])
            assert (error <= 6 * noisy.std(0) / rows**0.5 + 1e-5).all(), report.folded
    assert folds > 20
    assert refusals > 10
