import struct

from sublet.engine.seccomp import denied


def test_a_filter_is_whole_steps_that_jump_inside_it() -> None:
    for machine in ("x86_64", "aarch64"):
        steps = list(struct.iter_unpack("=HBBI", denied(machine)))
        assert steps[-1] == (0x06, 0, 0, 0x7FFF0000)  # what is not refused is allowed
        for at, (_, then, otherwise, _) in enumerate(steps):
            assert at + 1 + max(then, otherwise) < len(steps) or at == len(steps) - 1


def test_a_machine_with_other_numbers_gets_no_filter() -> None:
    assert denied("riscv64") == b""
