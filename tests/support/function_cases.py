"""Models with local functions that call each other, and those that nobody could write out: for Python and C++."""

from support.onnx_files import parsed

HEADER = '<domain: "local", opset_import: ["" : 18, "local" : 1]>'


def calling(main, *bodies):
    """A model whose main graph and functions F0, F1, ... hold these nodes."""
    functions = "\n".join(f"{HEADER}\nF{index} (a) => (b) {{ {body} }}" for index, body in enumerate(bodies))
    return parsed(
        f"""<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        g (float[4] x) => (float[4] y) {{ {main} }}
        {functions}""",
        check=False,
    )


def chain(depth, times=2, call="t{j} = local.F{next}({before})"):
    """F0 calls F1 `times` times, which does the same, down to one that computes."""
    bodies = []
    for level in range(depth):
        calls = [
            call.format(j=j, next=level + 1, before="a" if j == 0 else f"t{j - 1}", level=level) for j in range(times)
        ]
        bodies.append(" ".join([*calls, f"b = Identity(t{times - 1})"]))
    return calling("y = local.F0(x)", *bodies, "b = Neg(a)")


IN_A_BRANCH = """t{j} = If(yes) <
    then_branch = then () => (float[4] u) {{ u = local.F{next}({before}) }},
    else_branch = else () => (float[4] u) {{ u = local.F{next}({before}) }}
>"""

FUNCTIONS_WITHOUT_END = {
    "each calls the next twice": (chain(40), "more than 200,000 nodes"),
    "1,000 times": (chain(3, 1000), "more than 200,000 nodes"),
    "in the branches of an If": (chain(20, 1, IN_A_BRANCH), "more than 200,000 nodes"),
    "of a function that nothing calls": (
        calling("y = Neg(x)", *(["b = local.F0(a)"] * 0), "b = local.F0(a)"),
        "circle",
    ),
    "two that call each other": (calling("y = local.F0(x)", "b = local.F1(a)", "b = local.F0(a)"), "circle"),
    "a long way down": (chain(300, 1), "more than 100 deep"),
    "one name twice": (calling("y = Neg(x)", "b = Neg(a)", "b = Abs(a)"), "two of its functions have one name"),
}
FUNCTIONS_WITHOUT_END["one name twice"][0].functions[1].name = "F0"
