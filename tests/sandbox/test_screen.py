"""The static screen: every way to have a compiler read a file, and nothing that honest sources do."""

import pytest

from sandbox.screen import screen

READS_A_FILE = {
    "quotes": '#include "/etc/passwd"',
    "relative quotes": '#include "kernel.h"',
    "absolute": "#include </etc/passwd>",
    "absolute behind a blank": "#include < /etc/passwd>",
    "parent": "#include <sys/../../etc/passwd>",
    "macro": "#define H </etc/passwd>\n#include H",
    "blanks": ' \t\v# \t include\t"x"',
    "line continuation in the word": '#inc\\\nlude "x"',
    "line continuation in the name": "#include </etc/pass\\\nwd>",
    "continuation and blanks": '// harmless \\ \n#include "x"',
    "trigraph hash": '??=include "x"',
    "trigraph backslash": '// ??/\n#inc??/\nlude "x"',
    "digraph": '%:include "x"',
    "comment before": '/* a */ #include "x"',
    "two comments before": '/* a */ /* b */ #include "x"',
    "end of a long comment": '/* a\n b */ #include "x"',
    "comment within": '#/* a */include "x"',
    "comment before the name": '#include/* a */"x"',
    "long comment within": '# /* a\n */ include "x"',
    "comment opened in a string": 'const char* s = "/*";\n#include "x" // */',
    "comment opened in a raw string": 'const char* s = R"(/*)";\n#include "x"',
    "comment opened in a character": "auto n = 1'0;\n#include \"x\" // '",
    "include_next": "#include_next <stdio.h>",
    "import": "#import <stdio.h>",
    "embed": "#embed </etc/passwd>",
    "embed, angle": "#embed <passwd>",
    "line": '#line 1 "/etc/passwd"',
    "line marker": '# 1 "/etc/passwd"',
    "has_include": '#if __has_include("/etc/passwd")\n#endif',
    "has_include, angle": "#if __has_include(</etc/passwd>)\n#endif",
    "has_include by another name": '#define H __has_include\n#if H("/etc/passwd")\n#endif',
    "has_include_next": "#if __has_include_next(<x>)\n#endif",
    "has_embed": "#if __has_embed(<x>)\n#endif",
    "pragma dependency": '#pragma GCC dependency "/etc/passwd"',
    "_Pragma dependency": '_Pragma("GCC dependency \\"/etc/passwd\\"")',
    "pragma pch": '#pragma GCC pch_preprocess "x"',
    "incbin": 'asm(".incbin \\"/etc/passwd\\"");',
    "incbin in capitals": 'asm(".INCBIN \\"/etc/passwd\\"");',
    "include in assembly": 'asm(".include \\"/etc/passwd\\"");',
    "lone carriage return": '// x\r#include "x"',
    "NUL": '\0#include "x"',
}

HONEST = {
    "headers": '#include <cuda_fp16.h>   // half ... and "friends"\n#include <cuda/ptx>\n# include <mma.h> /* x */',
    "conditions": "#if defined(X) && __has_include(<mma.h>)\n#elif 1\n#else\n#endif\n#undef X",
    "asks whether it may ask": "#ifdef __has_include\n#endif\n#if defined(__has_include)\n#endif",
    "macro over lines": "#define F(x) \\\n  x + \\\n  1\n",
    "stringify": '#define S(x) #x\nconst char* s = S(a) "#include";',
    "pragmas": "#pragma unroll 4\n#pragma omp parallel for\n#pragma GCC ivdep\n#pragma once\n_Pragma(\"unroll\")",
    "prose": '// take #include "x" out\n/* and\n * include it in the comment\n */',
    "assembly": 'asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(a), "l"(b));',
    "modulo and digits": "int n = a %b; int m = 1'000'000; auto c = '#';",
    "null directive": "#\n",
    "errors": '#error "sm_80 wanted"\n#warning x',
}  # fmt: skip


@pytest.mark.parametrize("source", READS_A_FILE.values(), ids=READS_A_FILE.keys())
def test_source_that_could_read_a_file_is_refused(source: str) -> None:
    assert screen(source) is not None
    assert screen(f"int x;\n{source}\nint y;") is not None


@pytest.mark.parametrize("source", HONEST.values(), ids=HONEST.keys())
def test_honest_source_passes(source: str) -> None:
    assert screen(source) is None


def test_refusal_names_the_line_and_the_rule() -> None:
    refusal = screen('int a;\n#define X \\\n  1\n#include "x.h"\n')
    assert refusal is not None
    assert refusal.line == 4
    assert 'angle brackets, got "x.h"' in refusal.rule
