"""Bulk jobs from tables to tables: every row once, in any order of shards, after any end."""

import dataclasses
import json
import shutil
import subprocess
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from jina_jax.bulk import job, local
from jina_jax.bulk.output import ShardFiles
from jina_jax.bulk.plan import MANIFEST, Manifest, PlanError
from jina_jax.bulk.ranks import ALONE
from jina_jax.bulk.shards import Worker
from jina_jax.bulk.stores import Store
from jina_jax.bulk.tables import read_facts
from jina_jax.bulk.verify import verify

TASKS = ("retrieval.passage", "classification")
WORDS = ["the", "town", "hall", "opens", "at", "nine", "and", "closes", "when", "all", "left"]


def text(i):
    return " ".join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(1 + i % 9)) + f" {i}"


TEXTS = [text(i) for i in range(120)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two files, in row groups of 20."""
    folder = tmp_path_factory.mktemp("source")
    for k, own in enumerate((range(70), range(70, 120))):
        ids = [f"row-{i}" for i in own]
        table = pa.table({"id": ids, "body": TEXTS[own.start : own.stop], "number": list(own)})
        pq.write_table(table, folder / f"{k}.parquet", row_group_size=20)
    return folder


def write(path, columns):
    pq.write_table(pa.table(columns), path)
    return path


def settings_of(directory, **options):
    given = {"text": ["body"], "id": "id", "tasks": [TASKS[0]], "max_length": 128, **options}
    return job.resolve(directory, **given)


def run(model, directory, source, output, *, shards=None, rows=50, **options):
    settings = settings_of(directory, **options)
    store = Store(str(output))
    plan = job.plan([str(source)], store, settings, directory, name="m", shard_rows=rows)
    left = job.own_shards(plan, store) if shards is None else shards
    job.work(model, plan, store, left)
    return plan, store


def tables(plan, output):
    return [pq.read_table(output / f"{plan.name(k)}.parquet") for k in range(len(plan.shards))]


def read(plan, output):
    return pa.concat_tables([own.replace_schema_metadata() for own in tables(plan, output)])


def vectors(table, name="embedding"):
    return np.stack(table.column(name).to_numpy(zero_copy_only=False))


def contents(output):
    return {path.name: path.read_bytes() for path in output.glob("*.parquet")}


def problems(output):
    found = [pq.read_table(own) for own in sorted((output / "_errors").glob("*.parquet"))]
    return pa.concat_tables(found).to_pylist() if found else []


@pytest.fixture(scope="module")
def whole(model, directory, source, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "vectors"
    plan, _ = run(model, directory, source, output, columns=("number",))
    return plan, output


def test_every_row_is_there_once_with_its_vector(model, directory, whole):
    plan, output = whole
    table = read(plan, output)
    assert len(plan.shards) == 3
    assert plan.rows == 120
    assert table.column_names == ["id", "number", "embedding"]
    assert table.column("id").to_pylist() == [f"row-{i}" for i in range(120)]
    assert table.column("number").to_pylist() == list(range(120))
    expected = model.encode(TEXTS, task=TASKS[0], max_length=128)
    np.testing.assert_allclose(vectors(table), expected, atol=2e-6)


def test_tables_say_where_their_vectors_are_from(directory, whole):
    plan, output = whole
    facts = read_facts(pq.read_schema(output / f"{plan.name(1)}.parquet"))
    assert facts["shard"] == 1
    assert facts["plan"] == plan.hash
    assert facts["model_sha256"] == plan.model.sha256
    assert facts["settings"]["tasks"] == [TASKS[0]]
    assert facts["versions"].keys() == {"jina-jax", "jax", "jaxlib"}
    manifest = Manifest.from_json((output / MANIFEST).read_bytes())
    assert manifest == plan
    assert manifest.hash == plan.hash


def test_shards_do_not_depend_on_those_before_them(model, directory, source, whole, tmp_path):
    _, output = whole
    for name, order in (("back", [2, 1, 0]), ("parts", None)):
        other = tmp_path / name
        options = {"columns": ("number",)}
        if order:
            run(model, directory, source, other, shards=order, **options)
        else:
            for k in range(3):
                run(model, directory, source, other, shards=[k], **options)
        assert contents(other) == contents(output)


def test_a_job_goes_on_with_the_shards_that_are_missing(model, directory, source, whole, tmp_path):
    plan, output = whole
    other = tmp_path / "other"
    run(model, directory, source, other, shards=[1], columns=("number",))
    before = (other / f"{plan.name(1)}.parquet").stat()
    run(model, directory, source, other, columns=("number",))
    assert contents(other) == contents(output)
    after = (other / f"{plan.name(1)}.parquet").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert list((other / "_tmp").iterdir()) == []


def test_two_workers_on_a_shard_leave_one_of_it(model, directory, source, whole, tmp_path):
    _, output = whole
    other = tmp_path / "other"
    for _ in range(2):
        run(model, directory, source, other, shards=[0, 1, 2], columns=("number",))
    assert contents(other) == contents(output)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"tasks": [TASKS[1]]}, r"tasks=\('retrieval.passage',\) there, \('classification',\)"),
        ({"truncate_dim": 32}, "dim=64 there, 32 here"),
        ({"rows": 40}, "shard_rows=50 there, 40 here"),
        ({"columns": ("number",)}, "columns="),
    ],
)
def test_another_plan_is_refused(model, directory, source, tmp_path, change, rule):
    run(model, directory, source, tmp_path / "out", shards=[0])
    before = contents(tmp_path / "out")
    with pytest.raises(PlanError, match=rule):
        run(model, directory, source, tmp_path / "out", **change)
    assert contents(tmp_path / "out") == before


def test_inputs_that_changed_are_refused(model, directory, tmp_path):
    source = write(tmp_path / "a.parquet", {"id": [1, 2], "body": ["one", "two"]})
    settings, store = settings_of(directory), Store(str(tmp_path / "out"))
    plan = job.plan([str(source)], store, settings, directory, name="m")
    write(source, {"id": [1, 2, 3], "body": ["one", "two", "three"]})
    with pytest.raises(ValueError, match=r"a\.parquet: has changed"):
        job.work(model, plan, store, [0])
    with pytest.raises(PlanError, match=r"input .*a\.parquet: has changed \(\d+ bytes before"):
        job.plan([str(source)], store, settings, directory, name="m")
    assert contents(tmp_path / "out") == {}


def test_other_weights_are_refused(model, directory, source, tmp_path):
    plan, _ = run(model, directory, source, tmp_path / "out", shards=[])
    other = dataclasses.replace(plan, model=plan.model._replace(sha256="0" * 64))
    (tmp_path / "out" / MANIFEST).write_bytes(other.to_json())
    with pytest.raises(PlanError, match="model: m there and m here differ"):
        run(model, directory, source, tmp_path / "out")


def test_bad_rows_are_listed_and_others_go_on(model, directory, tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", None, b"a " * 120, b"", b"last"], pa.binary())
    columns = {"id": list("abcdef"), "body": raw.view(pa.string())}
    source = write(tmp_path / "a.parquet", {**columns, "task": [*TASKS, None, None, "no", None]})
    options = {"long_text": "error", "task_column": "task"}
    plan, store = run(model, directory, source, tmp_path / "out", **options)
    table = read(plan, tmp_path / "out")
    assert table.column("id").to_pylist() == ["a", "c", "f"]
    assert table.column("embedding").is_null().to_pylist() == [False, True, False]
    expected = model.encode(["good", "last"], task=TASKS[0])
    np.testing.assert_allclose(vectors(table.take([0, 2])), expected, atol=2e-6)
    found = [
        (own["row"], own["id"], own["column"], own["reason"]) for own in problems(tmp_path / "out")
    ]
    assert [own[:3] for own in found] == [(1, "b", "body"), (3, "d", "body"), (4, "e", "task")]
    assert "UTF-8" in found[0][3]
    assert "expected at most 128 tokens, got" in found[1][3]
    assert "got 'no'" in found[2][3]
    assert job.summary(plan, store) == job.Summary(1, 1, 3)
    statistics = json.loads(store.read(f"_stats/{plan.name(0)}.json"))
    assert [statistics[name] for name in ("rows", "bad", "nulls")] == [3, 3, 1]


def test_identical_texts_are_encoded_once(model, directory, tmp_path):
    texts = [TEXTS[i % 7] for i in range(60)]
    source = write(tmp_path / "a.parquet", {"id": list(range(60)), "body": texts})
    plan, store = run(model, directory, source, tmp_path / "out", dedup=True)
    expected = model.encode(texts, task=TASKS[0])
    np.testing.assert_allclose(vectors(read(plan, tmp_path / "out")), expected, atol=2e-6)
    found = [json.loads(store.read(f"_stats/{plan.name(k)}.json")) for k in range(2)]
    assert sum(own["duplicates"] for own in found) == 60 - 2 * 7  # 7 texts in each of two shards
    _, info = model.encode(TEXTS[:7], task=TASKS[0], return_info=True)
    assert [own["tokens"] for own in found] == [info.tokens.sum()] * 2


def test_identical_texts_of_two_tasks_are_two(model, directory, tmp_path):
    """Without prompts, which differ by task as well."""
    columns = {"id": [1, 2, 3], "body": ["the same"] * 3, "task": [*TASKS, TASKS[0]]}
    source = write(tmp_path / "a.parquet", columns)
    options = {"dedup": True, "task_column": "task", "prompt": None}
    plan, _ = run(model, directory, source, tmp_path / "out", **options)
    expected = model.encode(columns["body"], task=columns["task"], prompt=None)
    assert not np.allclose(expected[0], expected[1], atol=1e-3)
    np.testing.assert_allclose(vectors(read(plan, tmp_path / "out")), expected, atol=2e-6)


def test_rows_of_jsonl_are_divided_as_well(directory, tmp_path):
    """By their bytes, as their number is not known; small files are joined."""
    settings = settings_of(directory)
    lines = [json.dumps({"id": i, "body": "a text"}) + "\n" for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    for k in range(3):
        (tmp_path / f"b{k}.jsonl").write_text(lines[0])
    store = Store(str(tmp_path / "out"))
    plan = job.plan([f"{tmp_path}/*.jsonl"], store, settings, directory, name="m", shard_rows=25)
    assert [len(own) for own in plan.shards] == [1, 1, 1, 1, 4]  # 20 rows each, and 3 of others


@pytest.mark.parametrize("chunks", ["sentences", 6])
def test_chunks_have_rows_of_their_own(model, directory, tmp_path, chunks):
    texts = ["One sentence. Another one, longer. A third!", "", None, "Short.", "word " * 90]
    source = write(tmp_path / "a.parquet", {"id": list("abcde"), "body": texts})
    plan, _ = run(model, directory, source, tmp_path / "out", chunks=chunks)
    rows = read(plan, tmp_path / "out").to_pylist()
    given = [own for own in texts if own]
    expected = model.encode_chunks(given, chunks, task=TASKS[0], max_length=128)
    wanted = []
    for name, own in zip(["a", "d", "e"], expected, strict=True):
        wanted += [(name, k, *span, v) for k, (span, v) in enumerate(zip(*own, strict=True))]
    there = [own for own in rows if own["embedding"] is not None]
    names = ("id", "chunk", "start", "stop")
    assert [tuple(own[name] for name in names) for own in there] == [own[:4] for own in wanted]
    found = np.array([own["embedding"] for own in there], np.float32)
    np.testing.assert_allclose(found, np.stack([own[4] for own in wanted]), atol=2e-6)
    empty = [own for own in rows if own["embedding"] is None]
    assert [own["id"] for own in empty] == ["b", "c"]
    assert all(own["chunk"] is own["start"] is own["stop"] is None for own in empty)


@pytest.mark.parametrize("kind", ["float16", "bytes", "ubinary"])
def test_vectors_in_other_forms(model, directory, source, whole, tmp_path, kind):
    plan, _ = run(model, directory, source, tmp_path / "out", kind=kind, rows=50)
    table, exact = read(plan, tmp_path / "out"), vectors(read(*whole))
    column = table.column("embedding").to_pylist()
    if kind == "float16":
        found, exact = np.array(column, np.float16), exact.astype(np.float16)
    else:
        found = np.stack([np.frombuffer(own, np.uint8) for own in column])
        if kind == "bytes":
            found = found.view("<f4")
        else:
            exact = np.packbits(exact > 0, axis=1)
    np.testing.assert_array_equal(found, exact)


def test_several_columns_each_with_its_task(model, directory, tmp_path):
    columns = {"id": [1, 2], "title": ["A", None], "body": ["one text", "another text"]}
    source = write(tmp_path / "a.parquet", columns)
    options = {"text": ["title", "body"], "tasks": TASKS}
    plan, _ = run(model, directory, source, tmp_path / "out", **options)
    table = read(plan, tmp_path / "out")
    assert table.column_names == ["id", "title_embedding", "body_embedding"]
    expected = model.encode(columns["body"], task=TASKS[1])
    np.testing.assert_allclose(vectors(table, "body_embedding"), expected, atol=2e-6)
    assert table.column("title_embedding").is_null().to_pylist() == [False, True]


def test_rows_without_ids_are_named_by_file_and_number(model, directory, source, tmp_path):
    plan, _ = run(model, directory, source, tmp_path / "out", id=None)
    table = read(plan, tmp_path / "out")
    assert table.column_names == ["file", "row", "embedding"]
    assert table.column("row").to_pylist() == [*range(70), *range(50)]
    files = table.column("file").to_pylist()
    assert files == [str(source / "0.parquet")] * 70 + [str(source / "1.parquet")] * 50


def test_an_input_without_rows_has_no_shards(model, directory, tmp_path):
    empty = pa.table({"id": pa.array([], pa.int64()), "body": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "a.parquet")
    plan, store = run(model, directory, tmp_path / "a.parquet", tmp_path / "out")
    assert job.summary(plan, store) == job.Summary(0, 0, 0)
    assert plan.rows == 0


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"tasks": ["nonsense"]}, "task"),
        ({"tasks": [None, None, None]}, "task: expected one, or one per column"),
        ({"text": ["body", "body"]}, "text: expected names of columns, each once"),
        ({"kind": "int8"}, "kind='int8'"),
        ({"truncate_dim": 7}, "truncate_dim"),
        ({"max_length": 1}, "max_length=1"),
        ({"chunks": 5, "long_text": "error"}, "long_text='error'"),
        ({"chunks": 5, "text": ["a", "b"]}, "chunks: expected one column"),
        ({"prompt_name": "nonsense"}, "prompt_name"),
    ],
)
def test_settings_that_cannot_be(directory, options, rule):
    with pytest.raises(ValueError, match=rule):
        settings_of(directory, **options)


def test_a_missing_column_is_named(directory, source, tmp_path):
    settings = settings_of(directory, text=["text"])
    with pytest.raises(ValueError, match=r"0\.parquet: expected one column 'text', got 0 of 'id'"):
        job.plan([str(source)], Store(str(tmp_path)), settings, directory, name="m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"columns": ("embedding",)}, "columns='embedding': would be twice"),
        ({"columns": ("number", "number")}, "columns='number': would be twice"),
        ({"task_column": "number"}, "column 'number': expected texts, got int64"),
        ({"id": "list"}, "id: expected a column of single values, got 'list' of list<"),
    ],
)
def test_columns_that_cannot_be_are_refused_before_there_is_a_plan(
    directory, tmp_path, options, rule
):
    columns = {"id": [1], "body": ["one"], "number": [1], "embedding": [1], "list": [[1]]}
    source = write(tmp_path / "a.parquet", columns)
    settings, store = settings_of(directory, **options), Store(str(tmp_path / "out"))
    with pytest.raises(ValueError, match=rule):
        job.plan([str(source)], store, settings, directory, name="m")
    assert store.read(MANIFEST) is None


@pytest.mark.parametrize("content", [b'{"version":1}', b'{"version":1,"settings":{"no":1}}', b"[]"])
def test_a_damaged_manifest_is_named(content):
    with pytest.raises(PlanError, match=r"_manifest\.json: expected a plan"):
        Manifest.from_json(content)


@pytest.mark.parametrize("options", [{"chunks": 5}, {"long_text": "windows"}])
def test_means_over_parts_need_a_model_with_the_mean(directory, tmp_path, options):
    other = shutil.copytree(directory, tmp_path / "model")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "emb_pooler": "cls"}))
    with pytest.raises(ValueError, match="expected a model with the 'mean' pooler"):
        settings_of(other, **options)


@pytest.mark.parametrize(("by_rank", "expected"), [(True, ["--rank", "--world"]), (False, [])])
def test_local_processes_have_ranks_unless_they_work_by_leases(
    tmp_path, monkeypatch, by_rank, expected
):
    started = []

    class Process:
        def __init__(self, command, env):
            started.append([own for own in command if own.startswith("--")])

        def wait(self, timeout=None):
            return 0

        poll = wait

        def kill(self):
            pass

        def terminate(self):
            pass

    store = Store(str(tmp_path))
    asked = subprocess.CompletedProcess([], 0, stdout="cpu 2\n")
    monkeypatch.setattr(local.subprocess, "run", lambda *_, **__: asked)
    monkeypatch.setattr(local.subprocess, "Popen", Process)
    assert local.run_processes(["bulk"], 1, ALONE, store, by_rank=by_rank) == 0
    assert started == [expected] * 2


def test_a_job_goes_on_whatever_types_pass_through(model, directory, tmp_path):
    pairs = pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64()))
    columns = {"id": [1, 2, 3, 4], "body": TEXTS[:4], "pairs": pairs}
    source = write(tmp_path / "a.parquet", columns)
    plans = []
    for shards in ([0], None):
        options = {"columns": ("pairs",), "rows": 2}
        plan, _ = run(model, directory, source, tmp_path / "out", shards=shards, **options)
        plans.append(plan)
    assert plans[0].hash == plans[1].hash
    assert len(contents(tmp_path / "out")) == 2
    assert read(plan, tmp_path / "out").column("pairs").to_pylist() == pairs.to_pylist()


def test_texts_may_be_called_as_the_numbers_of_rows(model, directory, tmp_path):
    source = write(tmp_path / "a.parquet", {"row": TEXTS[:3]})
    plan, _ = run(model, directory, source, tmp_path / "out", text=["row"], id=None)
    assert read(plan, tmp_path / "out").column("row").to_pylist() == [0, 1, 2]


def test_an_output_among_the_inputs_is_refused(model, directory, source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "source")
    settings = settings_of(directory)
    for output, inputs in (("vectors", folder), (".", folder), (".", folder / "*.parquet")):
        store = Store(str(folder / output))
        with pytest.raises(ValueError, match=r"output=.*: expected a place outside of the inputs"):
            job.plan([str(inputs)], store, settings, directory, name="m")
        assert store.read(MANIFEST) is None
    job.plan([str(folder / "0.parquet")], Store(str(folder / "v")), settings, directory, name="m")


@pytest.mark.parametrize(
    ("body", "options"),
    [("", {"dedup": True}), ("the same", {"dedup": True}), (" ", {"chunks": "sentences"})],
)
def test_rows_without_texts_of_their_own_do_not_pile_up(
    model, directory, tmp_path, monkeypatch, body, options
):
    """Nulls, duplicates, and texts without chunks behind a few texts, in a file of one shard."""
    lines = [TEXTS[0], *[body] * 400, TEXTS[1], *[body] * 400]
    source = tmp_path / "a.csv"
    source.write_text("id,body\n" + "".join(f"{i},{own}\n" for i, own in enumerate(lines)))
    monkeypatch.setattr("jina_jax.bulk.sources.delimited.MOST_ROWS", 5)
    monkeypatch.setattr("jina_jax.bulk.shards._ROWS_THAT_WAIT", 20)
    waiting, write = [], ShardFiles.write

    def watch(*arguments):
        waiting.append(len(worker._open))
        write(*arguments)

    monkeypatch.setattr(ShardFiles, "write", watch)
    store = Store(str(tmp_path / "out"))
    plan = job.plan([str(source)], store, settings_of(directory, **options), directory, name="m")
    worker = Worker(model, plan, store)
    worker.run([0])
    assert max(waiting) <= 20  # of 161
    table = read(plan, tmp_path / "out")
    assert table.column("id").to_pylist() == [str(i) for i in range(802)]
    expected = model.encode([TEXTS[0], TEXTS[1]], task=TASKS[0])
    np.testing.assert_allclose(vectors(table.take([0, 401])), expected, atol=2e-6)


def test_a_shard_without_chunks_is_there_before_the_next_is_known(model, directory, tmp_path):
    """Else two workers by leases, each with such a shard, would wait for one another."""
    source = write(tmp_path / "a.parquet", {"id": [1, 2], "body": [" ", ""]})
    settings, store = settings_of(directory, chunks="sentences"), Store(str(tmp_path / "out"))
    plan = job.plan([str(source)], store, settings, directory, name="m", shard_rows=1)

    def shards():
        yield 0
        until = time.monotonic() + 20
        while plan.done(store) != {0}:
            assert time.monotonic() < until
            time.sleep(0.01)
        yield 1

    job.work(model, plan, store, shards())
    assert read(plan, tmp_path / "out").column("id").to_pylist() == [1, 2]


def test_chunks_of_long_rows_are_written_in_portions(model, directory, tmp_path, monkeypatch):
    texts = [f"{i} " + "word " * (i % 7) for i in range(30)]
    columns = {"id": list(range(30)), "body": texts, "more": ["x" * 500] * 30}
    source = write(tmp_path / "a.parquet", columns)
    options = {"chunks": 4, "columns": ("more",)}
    plan, _ = run(model, directory, source, tmp_path / "one", **options)
    whole = read(plan, tmp_path / "one")
    sizes, put = [], ShardFiles.write

    def watch(files, file, own):
        sizes.append(own.table.nbytes)
        put(files, file, own)

    monkeypatch.setattr(ShardFiles, "write", watch)
    monkeypatch.setattr("jina_jax.bulk.rows.MOST_BYTES", 2000)
    monkeypatch.setattr("jina_jax.bulk.shards._BYTES_TO_CHUNK", 3000)
    plan, store = run(model, directory, source, tmp_path / "parts", **options)
    assert max(sizes) <= 2000
    assert (
        read(plan, tmp_path / "parts")
        .drop_columns("embedding")
        .equals(whole.drop_columns("embedding"))
    )
    found = read(plan, tmp_path / "parts")
    np.testing.assert_allclose(vectors(found), vectors(whole), atol=2e-6)
    assert json.loads(store.read(f"_stats/{plan.name(0)}.json"))["rows"] == whole.num_rows


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        *((pa.timestamp("ns", "UTC"), 1 << 60), (pa.duration("ns"), 1 << 60)),
        *((pa.time64("ns"), 86_399_000_000_001), (pa.time32("ms"), 86_399_000)),
        *((pa.timestamp("ms"), 1 << 60), (pa.timestamp("us"), 1 << 60)),
        *((pa.duration("s"), 1 << 60), (pa.date32(), 1 << 30)),
    ],
)
def test_ids_that_are_dates_and_times(model, directory, tmp_path, kind, last):
    """Those that Python does not have, in nanoseconds or after the year 9999, among them."""
    numbers = [last - i for i in range(3)]
    bodies = pa.array([b"one", b"\xff", b"three"], pa.binary())
    ids = pa.array(numbers, pa.int32() if kind.bit_width == 32 else pa.int64()).view(kind)
    source = write(tmp_path / "a.parquet", {"id": ids, "body": bodies.view(pa.string())})
    plan, store = run(model, directory, source, tmp_path / "out")
    assert integers(read(plan, tmp_path / "out")) == numbers[::2]
    bad = pq.read_table(tmp_path / "out" / "_errors" / f"{plan.name(0)}.parquet")
    assert integers(bad) == numbers[1:2]
    assert verify(store) == []


def test_types_that_parquet_does_not_have(model, directory, tmp_path):
    ids = pa.array([1, 1 << 33], pa.int64()).cast(pa.timestamp("s"))
    days = pa.array([0, 86_400_000], pa.int64()).cast(pa.date64())
    times = pa.array([[1], [2, 3]], pa.list_(pa.time32("s")))
    table = pa.table({"id": ids, "body": TEXTS[:2], "day": days, "times": times})
    feather.write_feather(table, str(tmp_path / "a.feather"))
    options = {"columns": ("day", "times")}
    plan, store = run(model, directory, tmp_path / "a.feather", tmp_path / "out", **options)
    found = read(plan, tmp_path / "out")
    assert found.schema.field("id").type == pa.timestamp("ms")
    assert found.select(["id", "day", "times"]).to_pylist() == table.drop("body").to_pylist()
    assert verify(store) == []
    spans = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    feather.write_feather(pa.table({"id": spans, "body": TEXTS[:1]}), str(tmp_path / "b.feather"))
    with pytest.raises(ValueError, match=r"columns: 'id' of .*interval cannot be in Parquet"):
        run(model, directory, tmp_path / "b.feather", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def integers(table):
    own = table.column("id").combine_chunks()
    return own.view(pa.int32() if own.type.bit_width == 32 else pa.int64()).to_pylist()


def test_ids_that_are_no_numbers(model, directory, tmp_path):
    source = write(tmp_path / "a.parquet", {"id": [1.5, float("nan")], "body": TEXTS[:2]})
    plan, store = run(model, directory, source, tmp_path / "out")
    assert verify(store) == []
    name = f"{plan.name(0)}.parquet"
    pq.write_table(pq.read_table(tmp_path / "out" / name).take([1, 0]), tmp_path / "out" / name)
    assert any("expected id 1.5, as in the inputs, got 'nan'" in own for own in verify(store))


def test_a_job_goes_on_from_another_directory(model, directory, source, tmp_path, monkeypatch):
    folder = shutil.copytree(source, tmp_path / "a" / "source")
    monkeypatch.chdir(tmp_path / "a")
    run(model, directory, "source", "../out", shards=[0])
    monkeypatch.chdir(folder)
    plan, store = run(model, directory, ".", "../../out")
    assert [file.url for file in plan.inputs] == [f"{folder}/{k}.parquet" for k in range(2)]
    assert job.summary(plan, store) == job.Summary(3, 3, 0)
