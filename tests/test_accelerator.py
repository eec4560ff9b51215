"""benchmarks/accelerator.py: what is measured, left, resumed and shown. How fast is no matter here."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from compiling import QUICKLY

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORK = """
import json, os, signal, sys, time
words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
with open("{calls}", "a") as file:
    file.write(words["name"] + "\\n")
time.sleep(float(words.get("sleep", 0)))
if "says" in words:
    sys.exit(words["says"])
rows = [{{"name": words["name"], "limit": words.get("limit_minutes"), "done": words.get("done", "yes") == "yes"}}]
report = {{"device": "toy", "num_devices": 1, "jax": "0", "results": rows}}
open(words["json"], "w").write(json.dumps(report))
"""


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The modules of the benchmark; measurements run a stand-in that notes its name, sleeps, and reports or fails."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import accelerator
    import accelerator_parts
    import accelerator_records
    import accelerator_report
    import kernel_groups

    monkeypatch.setattr(accelerator_records, "FOLDER", tmp_path)
    calls = tmp_path / "calls"
    (tmp_path / "work.py").write_text(WORK.format(calls=calls))

    def measurement(name, *words, seconds=1.0, **about):
        words = (f"--name={name}", *words)
        return accelerator_parts.Measurement("b", name, about.pop("kind", name), "work", words, seconds, **about)

    def run(made, *, minutes=1.0, again=False):
        records = accelerator_records.Records(tmp_path / "out", ["b"], {})
        given = SimpleNamespace(minutes=minutes, again=again)
        return accelerator.run_part("b", made, records, given), records

    return SimpleNamespace(
        main=accelerator, parts=accelerator_parts, records=accelerator_records, report=accelerator_report,
        groups=kernel_groups, measurement=measurement, run=run, folder=tmp_path,
        calls=lambda: calls.read_text().split() if calls.exists() else [],
    )  # fmt: skip


def test_what_is_done_is_not_measured_again_unless_requested(bench):
    made = [bench.measurement(name) for name in ("one", "two")]
    assert bench.run(made)[0] == []
    left, records = bench.run([*made, bench.measurement("three")])
    assert left == [] and bench.calls() == ["one", "two", "three"]
    assert all(records.state(m) == "done" for m in made)
    bench.run(made[:1], again=True)
    assert bench.calls() == ["one", "two", "three", "one"]


def test_a_measurement_by_another_command_is_made_anew_but_paths_do_not_matter(bench):
    bench.run([bench.measurement("one", "--size=1", places=("--here=a",))])
    bench.run([bench.measurement("one", "--size=1", places=("--here=b",))])
    assert bench.calls() == ["one"]
    bench.run([bench.measurement("one", "--size=2")])
    assert bench.calls() == ["one", "one"]


def test_what_does_not_fit_into_the_minutes_is_left_for_the_next_call(bench):
    made = [bench.measurement("long", seconds=100.0), bench.measurement("short", seconds=1.0)]
    left, records = bench.run(made, minutes=1.0)
    assert bench.calls() == ["short"] and [name for name, _ in left] == ["long"]
    assert "about 100 s" in left[0][1] and "--minutes=1" in left[0][1]
    assert records.state(made[0]) is None
    assert bench.run(made, minutes=2.0)[0] == [] and bench.calls() == ["short", "long"]


def test_the_time_of_measurements_of_a_kind_is_learnt(bench):
    one, two = (bench.measurement(name, kind="same", seconds=50.0) for name in ("one", "two"))
    _, records = bench.run([one])
    assert records.estimate(two, most=60) < 20


def test_too_long_a_measurement_gets_more_time_and_fails_only_with_a_whole_part(bench, monkeypatch):
    monkeypatch.setattr(bench.main, "PATIENT_SECONDS", 0.3)
    slow = bench.measurement("slow", "--sleep=60", seconds=0.05)
    left, records = bench.run([slow], minutes=1.0)
    assert records.state(slow) == "timed out" and [name for name, _ in left] == ["slow"]
    assert records.estimate(slow, most=60) > 0.4
    left, records = bench.run([slow], minutes=0.5 / 60)
    assert records.state(slow) == "failed" and left == []
    assert bench.run([slow])[0] == [] and bench.calls() == ["slow", "slow"]


def test_out_of_memory_is_a_result_of_this_and_of_larger_batches(bench):
    made = [
        bench.measurement("64"),
        bench.measurement("128", "--says=RESOURCE_EXHAUSTED: Out of memory", after="64"),
        bench.measurement("256", after="128"),
        bench.measurement("512", after="256"),
    ]
    left, records = bench.run(made)
    assert left == [] and bench.calls() == ["64", "128"]
    assert [records.state(m) for m in made] == ["done", *["out of memory"] * 3]
    assert bench.run(made)[0] == [] and bench.calls() == ["64", "128"]


def test_a_failure_is_recorded_with_its_last_line_and_others_go_on(bench):
    made = [bench.measurement("bad", "--says=TypeError: no such thing"), bench.measurement("good")]
    _, records = bench.run(made)
    assert [records.state(m) for m in made] == ["failed", "done"]
    assert "TypeError: no such thing" in records.find(made[0])["reason"]


def test_training_continues_in_later_calls_and_what_needs_it_waits(bench):
    more = bench.measurement("train", "--done=no", resumes=True)
    after = bench.measurement("after", needs=("train",))
    left, records = bench.run([more, after])
    assert [name for name, _ in left] == ["train", "after"] and bench.calls() == ["train"]
    assert 0 < float(records.find(more)["results"][0]["limit"]) < 1.0
    done = dataclasses.replace(more, words=("--name=train",))
    assert bench.run([done, after])[0] == [] and bench.calls() == ["train", "train", "after"]


@pytest.mark.e2e
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_call_loses_only_the_measurement_in_progress(bench, sent):
    driver = bench.folder / "driver.py"
    driver.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(BENCHMARKS)!r}]
        from pathlib import Path
        from types import SimpleNamespace
        import accelerator, accelerator_parts, accelerator_records
        accelerator_records.FOLDER = Path({str(bench.folder)!r})
        accelerator.stop_by_exception()
        of = lambda *words: accelerator_parts.Measurement("b", words[0][7:], "step", "work", words, 1.0)
        records = accelerator_records.Records(Path({str(bench.folder)!r}) / "out", ["b"], {{}})
        given = SimpleNamespace(minutes=5, again=False)
        accelerator.run_part("b", [of("--name=one"), of("--name=two", "--sleep=15")], records, given)
        """)
    )
    process = subprocess.Popen([sys.executable, str(driver)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while bench.calls() != ["one", "two"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, sent)
    process.wait(60)
    made = [bench.measurement("one"), bench.measurement("two", "--sleep=15")]
    records = bench.records.Records(bench.folder / "out", ["b"], {})
    assert [records.state(m) for m in made] == ["done", None]
    assert [path.name for path in (bench.folder / "out").glob("*.json")] == ["part_b.json"]


TEXT = """
HloModule jit_dispatch

%fused_computation.1 (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %t.1 = f32[8,8]{1,0} transpose(%p), dimensions={1,0}
}

%fused_computation.2 (p: f32[8,8], q: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %q = f32[8,8]{1,0} parameter(1)
  ROOT %d.1 = f32[8,8]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main.9 (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %loop_transpose_fusion.3 = f32[8,8]{1,0} fusion(%a), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(d)/jvp(UNet)/t"}
  %gemm_fusion.4 = f32[8,8]{1,0} fusion(%a, %a), kind=kCustom, calls=%fused_computation.2, metadata={op_name="jit(d)/jvp(UNet)/qkv/dot_general"}
  %conv.5 = (f32[8,8]{1,0}, u8[4]{0}) custom-call(%a), custom_call_target="__cudnn$convForward", metadata={op_name="jit(d)/jvp(UNet)/in_conv/conv"}
  %fmha.6 = (f32[8,8]{1,0}, u8[4]{0}) custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(d)/jvp(UNet)/a/a.mixed_values/dot"}
  %loop_add_fusion.7 = f32[8,8]{1,0} fusion(%a), kind=kLoop, calls=%fused_computation.1, metadata={op_name="jit(d)/optimizer/add"}
  ROOT %input_reduce.8 = f32[8,8]{1,0} reduce(%a), metadata={op_name="jit(d)/jvp(UNet)/norm/reduce_sum"}
}
"""  # noqa: E501


def gpu_events(*kernels):
    """The events of a trace with one stream: (kernel, instruction or None, microseconds)."""
    named = lambda kind, name, **about: {"ph": "M", "name": kind, "args": {"name": name}, **about}
    events = [
        named("process_name", "/device:GPU:0", pid=1),
        named("process_name", "/host:CPU", pid=2),
        named("thread_name", "Stream #13(Compute)", pid=1, tid=1),
        named("thread_name", "XLA Ops", pid=1, tid=2),
        {"ph": "X", "pid": 1, "tid": 2, "ts": 0, "dur": 5000, "name": "conv.5", "args": {"hlo_op": "conv.5"}},
        {"ph": "X", "pid": 2, "tid": 1, "ts": 0, "dur": 9000, "name": "python"},
    ]
    for kernel, op, dur in kernels:
        args = {"hlo_op": op} if op else {}
        events.append({"ph": "X", "pid": 1, "tid": 1, "ts": 0, "dur": dur, "name": kernel, "args": args})
    return events


def test_kernels_are_grouped_by_their_instructions(bench):
    groups = bench.groups
    events = gpu_events(
        ("sm90_xmma_fprop_implicit_gemm", "conv.5", 1000),
        ("nchwToNhwcKernel", "conv.5", 200),
        ("gemm_fusion_4", "gemm_fusion.4", 300),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "fmha.6", 400),
        ("loop_transpose_fusion_3", "loop_transpose_fusion.3", 50),
        ("loop_add_fusion_7", "loop_add_fusion.7", 70),
        ("input_reduce_8", None, 30),  # in a CUDA graph: known by its name
        ("nvjet_hsh_128x128", None, 10),  # of a library in a CUDA graph
    )
    rows = groups.kernel_rows(events, TEXT)
    found = {row["group"]: row for row in groups.group_rows(rows)}
    assert {group: row["ms"] for group, row in found.items()} == pytest.approx(
        {
            groups.PRODUCTS: 1.31,
            groups.ATTENTION: 0.4,
            groups.ELEMENTWISE: 0.03,
            groups.COPIES: 0.25,
            groups.OPTIMIZER: 0.07,
            groups.COLLECTIVES: 0.0,
        }
    )
    assert found[groups.PRODUCTS]["known"] == pytest.approx(1.3 / 1.31)
    assert found[groups.ELEMENTWISE]["known"] == 1 and found[groups.PRODUCTS]["count"] == 3
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)


def test_on_a_cpu_the_time_inside_other_instructions_counts_once(bench):
    event = lambda name, ts, dur: {
        "ph": "X", "pid": 1, "tid": 1, "ts": ts, "dur": dur, "name": name, "args": {"hlo_op": name},
    }  # fmt: skip
    events = [event("conv.5", 0, 100), event("input_reduce.8", 10, 30), event("conv.5", 200, 50)]
    spent = sorted((name, ms) for name, _, ms in bench.groups.kernel_events(events))
    assert spent == [("conv.5", 0.05), ("conv.5", 0.07), ("input_reduce.8", 0.03)]


def record(measurement, device, *results):
    return {
        "command": measurement.command, "kind": measurement.kind, "state": "done", "reason": None, "seconds": 1.0,
        "attempts": [], "machine": {"device": device, "num_devices": 1, "jax": "0"}, "results": list(results),
    }  # fmt: skip


def test_tables_have_ratios_only_within_a_device(bench):
    plan = bench.parts.plan(bench.parts.FULL)
    records = bench.records.Records(bench.folder / "out", list(plan), {})
    step, peers = plan["b"][0], {m.name: m for m in plan["c"]}
    product = {"what": "product", "rate": 500.0, "unit": "TFLOP/s", "dtype": "bfloat16"}
    figures = {"batch_size": 64, "dtype": "bfloat16", "ms_per_step": 1.0, "images_per_second": 100.0}
    figures |= {"forward_flops_per_image": 1e12, "device_bytes": 2e9, "compile_seconds": 3.0, "cache_hits": 1}
    peer = {"task": "train", "config": "imagenet64", "batch_size": 64, "parameters": 1000, "ms_per_step": 2.0}
    peer |= {"compile_seconds": 1.0}
    records.store(plan["a"][0], record(plan["a"][0], "one", product))
    records.store(step, record(step, "one", figures))
    for name, device, rate in (("cfgjax", "one", 50.0), ("eager_tuned", "one", 20.0), ("eager_compiled", "two", 40.0)):
        row = peer | {"contestant": name, "images_per_second": rate}
        records.store(peers[name], record(peers[name], device, row))
    text = "\n".join(bench.report.report(plan, records, {"b": [("batch 128", "needs about 9 s")]}))
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines()}
    assert cells["batch 64"][3:5] == ["300", "60.0%"] and "3 (cached)" in cells["batch 64"]
    assert [cells[name][5] for name in ("cfgjax", "eager_tuned", "eager_compiled")] == ["1.00", "0.40", "-"]
    assert "several devices" in text and "- left: batch 128: needs about 9 s" in text


def test_every_measurement_has_columns_a_known_benchmark_and_flags(bench):
    for sizes in (bench.parts.FULL, bench.parts.TINY):
        plan = bench.parts.plan(sizes, "cifar.npz", "runs")
        assert list(plan) == list(bench.parts.TITLES)
        for letter, made in plan.items():
            assert len({m.name for m in made}) == len({m.command for m in made}) == len(made)
            for m in made:
                assert m.part == letter and m.kind in bench.report.COLUMNS and (BENCHMARKS / f"{m.script}.py").exists()
                assert {m.after, *m.needs} - {None} <= {other.name for other in made}


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--parts=a,z", "unknown part 'z'"),
        ("--out=/dev/null/out", "--out=/dev/null/out cannot be created"),
        ("--cifar=/nowhere/cifar10.npz", "--cifar=/nowhere/cifar10.npz: there is no such file; need an .npz with"),
        (f"--cifar={__file__}", f"--cifar={__file__} is not an .npz; need an .npz with"),
        ("--minutes=-1", "flag --minutes=-1"),
    ],
)
def test_invalid_flags_are_one_line_before_any_work(bench, flag, told, capsys):
    out = bench.folder / "out"
    words = [flag] if flag.startswith("--out") else [flag, f"--out={out}"]
    assert bench.main.main(["accelerator.py", *words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and not out.exists()
    assert printed.err.startswith(f"accelerator.py: error: {told}")


@pytest.mark.e2e
def test_without_data_part_f_says_so_in_one_line(bench, tmp_path):
    given = SimpleNamespace(minutes=9.0, again=False)
    records = bench.records.Records(tmp_path / "out", ["f"], {})
    made = bench.parts.plan(bench.parts.FULL)["f"]
    assert bench.main.run_part("f", made, records, given) == [("all", bench.main.NO_DATA)]


@pytest.mark.e2e
def test_everything_runs_at_toy_sizes_and_a_second_call_measures_nothing(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "accelerator.py"), "--tiny", "--minutes=60", f"--out={tmp_path}"]
    options = {"capture_output": True, "text": True, "env": os.environ | QUICKLY}
    first = subprocess.run(command, timeout=1800, **options)
    assert first.returncode == 0, first.stdout + first.stderr
    parts = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("part_*.json"))]
    assert [part["part"] for part in parts] == list("abcdefg")
    states = {(p["part"], name): found["state"] for p in parts for name, found in p["measurements"].items()}
    assert set(states.values()) == {"done"}, first.stdout
    left = [line for line in first.stdout.splitlines() if line.startswith("- left: ")]
    assert all(line.endswith("torch is not installed") for line in left)
    assert {name for letter, name in states if letter == "f"} >= {"classifier", "frontier, p_uncond 0.1"}
    text = (tmp_path / "accelerator.md").read_text()
    assert text in first.stdout and all(f"## {letter}: " in text for letter in "abcdefg")
    assert "all of: optimizer" in text
    second = subprocess.run(command, timeout=300, **options)
    assert second.returncode == 0 and "done after" not in second.stderr
