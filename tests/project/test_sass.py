"""The tool that reads the machine code of the CUDA kernels finds what it is there to find."""

import copy
import importlib
import json
import sys

import pytest
from support.project import PROJECT

for folder in ("tools", "benchmarks"):
    sys.path.insert(0, str(PROJECT / folder))
sass, sass_path = importlib.import_module("sass"), importlib.import_module("sass_path")
roofline, readme = importlib.import_module("roofline"), importlib.import_module("readme")
del sys.path[:2]

# A loop whose whole packs are moved at 0x20 to 0x70, and whose tail at 0x90 to 0xb0 does the same with less.
LISTING = """
		Function : _ZN7jumpout1_12count_kernelIfLb1EEEvv
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA 0x90 ;
        /*0020*/                   LDG.E.128 R4, desc[UR6][R2.64] ;
        /*0030*/                   LDG.E.128 R8, desc[UR6][R2.64+0x10] ;
        /*0040*/                   NOP ;
        /*0050*/                   FSETP.GT.FTZ.AND P1, PT, R4, RZ, PT ;
        /*0060*/               @P2 CALL.REL.NOINC 0xd0 ;
        /*0070*/               @P1 VIADD R5, R5, 0x1 ;
        /*0080*/                   BRA 0xc0 ;
        /*0090*/                   LDG.E R4, desc[UR6][R2.64] ;
        /*00a0*/                   FSETP.GT.FTZ.AND P1, PT, R4, RZ, PT ;
        /*00b0*/               @P1 VIADD R5, R5, 0x1 ;
        /*00c0*/               @P3 BRA 0x10 ;
        /*00d0*/                   EXIT ;
"""


def test_the_common_path_is_the_one_that_moves_whole_packs():
    ((_, code),) = sass_path.read_functions(LISTING).items()
    names = [instruction.name for instruction in sass_path.common_path(code, 2, 0, 0)]
    assert names == ["BRA", "LDG.E.128", "LDG.E.128", "FSETP.GT.FTZ.AND", "CALL.REL.NOINC", "VIADD", "BRA", "BRA"]
    assert len(sass_path.common_path(code, 0, 0, 0)) == 5
    assert sass_path.common_path(code, 3, 0, 0) is None


def test_a_kernel_is_read_from_its_symbol():
    symbol = (
        "_ZN7jumpout48_GLOBAL__N__2613ae2c_15_jumpout_cuda_cu_e430659c12count_kernelI13__nv_bfloat16Lb1ELi32EEEvPKT_Pll"
    )
    assert sass.described(symbol) == ("count", "bfloat16", ["aligned", "by warp"])
    assert sass.described("_ZN7jumpout1_11rate_kernelILi1EEEvPKd") == ("rate", "", ["by thread"])
    with pytest.raises(ValueError, match=r"_Z5otherv is no kernel that tools/sass.py knows"):
        sass.described("_Z5otherv")


@pytest.mark.parametrize(
    "line",
    [
        "fma.rn.f32 %f1",
        "fma.rn.bf16x2 %r1",
        "mad.rn.f64",
        "mul.ftz.f32",
        "div.approx.f32",
        "sqrt.approx.f32",
        "div.full.f32",
    ],
)
def test_inexact_arithmetic_is_found(line):
    assert sass.INEXACT.search(line)


@pytest.mark.parametrize("line", ["mad.lo.s64 %rd1", "mad.wide.u32 %r", "div.rn.f64 %f", "sqrt.rn.f64", "mul.rn.f32"])
def test_exact_arithmetic_is_let_through(line):
    assert not sass.INEXACT.search(line)


def test_a_kernel_that_grew_is_found():
    before = json.loads(sass.RESULT.read_text())
    assert sass.grown(before, before) == []
    now = copy.deepcopy(before)
    entry = now["architectures"]["sm_90"]["count float32 aligned by block"]
    entry["issued"] *= 1.09
    assert sass.grown(before, now) == []
    entry["registers"] = 2 * entry["registers"]
    (line,) = sass.grown(before, now)
    assert line.startswith("count float32 aligned by block, sm_90: ")
    now["architectures"]["sm_90"]["one more"] = entry
    assert "one more, sm_90: new; make cuda-sass writes the file anew" in sass.grown(before, now)


def test_the_bound_is_that_of_the_busiest_part():
    entry = {"issued": 100.0, "alu": 40.0, "imad": 10.0, "imad_wide": 14.0}
    assert roofline.cycles(entry) == (100.0, "issue")
    assert roofline.cycles({**entry, "alu": 60.0}) == (120.0, "ALU")
    assert roofline.cycles({**entry, "imad_wide": 30.0}) == (140.0, "IMAD")
    # By hand: 132 multiprocessors, 4 schedulers, 256 elements in 100 cycles, 3 bytes each.
    assert roofline.attainable(entry, roofline.GPUS[0], 3) == pytest.approx(132 * 4 * 1.755e9 / 100 * 256 * 3)


def test_the_table_in_the_docs_is_that_of_the_file():
    table = readme.roofline_table(json.loads(sass.RESULT.read_text()))
    assert table in (PROJECT / "docs" / "cuda.md").read_text(), "run `make cuda-sass`"
