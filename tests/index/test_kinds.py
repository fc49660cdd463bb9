"""Each kind through FAISS against exact search in float64: codes, filters, changes, and files that are opened within limits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from dualenc.index.kinds import KINDS, Allowed, Kind

ROWS, DIM = 2000, 32
TRAINED = {"train_rows_per_list": 64, "iterations": 10, "seed": 0, "centred": True}
BUILDS = {
    "flat": {"kind": "flat"},
    "hnsw": {"kind": "hnsw", "M": 16, "efConstruction": 80, "codes": "float32"},
    "hnsw_float16": {"kind": "hnsw", "M": 16, "efConstruction": 80, "codes": "float16"},
    "hnsw_sq8": {"kind": "hnsw", "M": 16, "efConstruction": 80, "codes": "sq8"},
    "ivf": {"kind": "ivf", "nlist": 40, "codes": "float32", **TRAINED},
    "ivf_sq8": {"kind": "ivf", "nlist": 40, "codes": "sq8", **TRAINED},
    "ivf_pq": {"kind": "ivf", "nlist": 40, "codes": "pq", "dims_per_code": 2, **TRAINED},
    "ivf_rabitq": {"kind": "ivf", "nlist": 40, "codes": "rabitq", "bits": 1, **TRAINED},
    "ivf_rabitq4": {"kind": "ivf", "nlist": 40, "codes": "rabitq", "bits": 4, **TRAINED},
    "scan_sq8": {"kind": "ivf", "nlist": 1, "codes": "sq8", **TRAINED},
    "scan_pq": {"kind": "ivf", "nlist": 1, "codes": "pq", "dims_per_code": 2, **TRAINED},
    "scan_rabitq": {"kind": "ivf", "nlist": 1, "codes": "rabitq", "bits": 1, **TRAINED},
    "scan_rabitq4": {"kind": "ivf", "nlist": 1, "codes": "rabitq", "bits": 4, **TRAINED},
}
EXACT = ["flat", "hnsw", "ivf"]
JOINING = [name for name, build in BUILDS.items() if build["kind"] != "hnsw"]
LISTS = [name for name, build in BUILDS.items() if build["kind"] == "ivf"]
CHEAPEST = {"nprobe": 1, "efSearch": 1}
WIDEST = {"nprobe": 40, "efSearch": 500}
# the largest error of a cosine that such codes may make on these rows: half again of what was seen, by kind of codes
ERROR = {"float32": 2e-6, "float16": 1e-3, "sq8": 0.06, "pq": 0.5, "rabitq": 1.2}
IDS = np.arange(ROWS) * 3


def make(name: str, images: np.ndarray, ids: np.ndarray = IDS, sample: slice = slice(None)) -> Kind:
    build = BUILDS[name]
    mean = images.mean(axis=0) if build.get("centred") else None
    kind = KINDS[build["kind"]].new(build, images.shape[1], mean, images[sample])
    kind.add(images, ids)
    return kind


@pytest.fixture(scope="module")
def kinds(data):
    return {name: make(name, data.images) for name in BUILDS}


def exact(queries, images, k, rows=None):
    """(rows, cosines) of the k best of the rows allowed, in float64."""
    scores = queries.astype(np.float64) @ images.astype(np.float64).T
    if rows is not None:
        scores[:, ~rows] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


def recall(found, best):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, best, strict=True)])


@pytest.mark.parametrize("name", list(BUILDS))
def test_search_against_exact_search(kinds, data, name):
    """All of it searched: the rows themselves in order where they are held, among 100 candidates where codes are."""
    kind = kinds[name]
    assert kind.exact == (name in EXACT)
    best, cosines = exact(data.texts, data.images, 10)
    found, scores = kind.search(data.texts, 10 if kind.exact else 250, WIDEST, IDS)
    assert found.dtype == np.int64 and scores.dtype == np.float32
    assert (np.diff(scores, axis=1) <= 0).all()
    truth = np.take_along_axis(data.texts.astype(np.float64) @ data.images.astype(np.float64).T, found // 3, 1)
    assert np.abs(scores - truth).max() < ERROR[kind.build.get("codes", "float32")]
    if kind.exact:
        assert recall(found, IDS[best]) > 0.999
        assert np.abs(scores - cosines).max() < (2e-6 if name != "hnsw" else 0.05)
    else:
        assert recall(found, IDS[best]) > (0.99 if "rabitq" not in name else 0.9)
        assert np.corrcoef(scores.ravel(), truth.ravel())[0, 1] > (0.5 if name.endswith("rabitq") else 0.8)


@pytest.mark.parametrize("name", list(BUILDS))
@pytest.mark.parametrize("k", [1, 300, 1999, 2000, 4096])
def test_any_k(kinds, data, name, k):
    """Every row is found once where there are no more than k, with the cheapest setting as well."""
    found, scores = kinds[name].search(data.texts[:7], k, CHEAPEST, IDS)
    assert found.shape == scores.shape == (7, k)
    reach = min(k, ROWS)
    assert all(len(np.unique(row)) == reach for row in found[:, :reach])
    assert np.isin(found[:, :reach], IDS).all()
    assert (found[:, reach:] == -1).all() and np.isneginf(scores[:, reach:]).all()
    assert np.isfinite(scores[:, :reach]).all()
    if reach == ROWS:
        assert (np.sort(found[:, :ROWS], axis=1) == IDS).all()


@pytest.mark.parametrize("name", ["scan_pq", "ivf_pq", "ivf_sq8", "scan_rabitq"])
def test_many_candidates_are_the_best_of_all(data, make_data, name):
    """FAISS takes other ways for large k: the 4096 best must be the 4096 best of an ordering of all."""
    images = make_data(6000, DIM, 1).images
    kind = make(name, images, np.arange(6000))
    every = kind.search(data.texts[:20], 6000, WIDEST, np.arange(6000))
    for k in (10, 100, 1000, 4096):
        found, scores = kind.search(data.texts[:20], k, WIDEST, np.arange(6000))
        assert np.abs(scores - every[1][:, :k]).max() < 0.02  # tables of 8 bits are rounded for each batch
        assert recall(found, every[0][:, :k]) > 0.97


@pytest.mark.parametrize("name", list(BUILDS))
@pytest.mark.parametrize("share", [0.999, 0.5, 0.05, 0.001])
def test_through_a_filter(kinds, data, name, share):
    """With the cheapest setting there is: what a filter leaves is found, nothing else is."""
    kind = kinds[name]
    rows = np.random.default_rng(1).random(ROWS) < share
    rows[:2] = True
    allowed = Allowed(rows)
    assert allowed.count == rows.sum()
    reach = min(50, allowed.count)
    found, scores = kind.search(data.texts, 50, CHEAPEST, IDS, allowed)
    assert np.isin(found[:, :reach], IDS[rows]).all()
    assert all(len(np.unique(row)) == reach for row in found[:, :reach])
    assert (found[:, reach:] == -1).all() and np.isneginf(scores[:, reach:]).all()
    best, cosines = exact(data.texts, data.images, reach, rows)
    if name == "flat" or (kind.exact and share < 0.01):
        assert recall(found[:, :reach], IDS[best]) > 0.999
        assert np.abs(scores[:, :reach] - cosines).max() < 2e-6
    again = kind.search(data.texts, 50, CHEAPEST, IDS, allowed)  # the selector is kept
    assert np.array_equal(found, again[0]) and allowed.cache


@pytest.mark.parametrize(("name", "setting"), [("hnsw", {"efSearch": 5}), ("ivf", {"nprobe": 4})])
def test_a_filter_that_leaves_half_costs_no_recall(kinds, data, name, setting):
    half = np.random.default_rng(2).random(ROWS) < 0.5
    recalls = []
    for rows in (np.ones(ROWS, bool), half):
        found, _ = kinds[name].search(data.texts, 5, setting, IDS, Allowed(rows))
        recalls.append(recall(found, IDS[exact(data.texts, data.images, 5, rows)[0]]))
    assert 0.3 < recalls[0] < 0.95
    assert recalls[1] >= recalls[0] - 0.02


@pytest.mark.parametrize("name", list(BUILDS))
def test_nothing_to_find(kinds, data, name):
    for queries, allowed in ((data.texts[:3], Allowed(np.zeros(ROWS, bool))), (data.texts[:0], None)):
        found, scores = kinds[name].search(queries, 4, CHEAPEST, IDS, allowed)
        assert found.shape == scores.shape == (len(queries), 4)
        assert (found == -1).all() and np.isneginf(scores).all()


@pytest.mark.parametrize("name", list(BUILDS))
@pytest.mark.parametrize("left_out", [7, 2])
def test_ids_up_to_the_last_int64(data, name, left_out):
    """Too far apart for a bitmap: sets of those that may be found, or of those that may not."""
    ids = np.iinfo(np.int64).max - np.arange(200) * 10**15
    kind = make(name, data.images[:200], ids)
    for rows in (np.arange(200) % left_out == 0, np.arange(200) % left_out != 0):
        found, _ = kind.search(data.images[:200], 20, WIDEST, ids, Allowed(rows))
        assert np.isin(found, ids[rows]).all()
        best, _ = exact(data.images[:200], data.images[:200], 20, rows)
        assert recall(found, ids[best]) > (0.5 if "rabitq" in name or "pq" in name else 0.95)


@pytest.mark.parametrize("name", JOINING)
def test_removed_rows_are_gone_and_the_others_keep_their_ids(data, name):
    kind = make(name, data.images)
    gone = np.arange(ROWS) % 3 == 1
    kind.remove(IDS[gone])
    assert kind.total == (~gone).sum()
    found, scores = kind.search(data.texts[:50], ROWS, WIDEST, IDS[~gone])
    assert (np.sort(found[:, : kind.total], axis=1) == IDS[~gone]).all() and (found[:, kind.total :] == -1).all()
    fresh = make(name, data.images)
    expected = fresh.search(data.texts[:50], ROWS, WIDEST, IDS, Allowed(~gone))[1]
    assert np.abs(scores[:, : kind.total] - expected[:, : kind.total]).max() < 0.02
    if kind.exact:
        places = np.arange(0, kind.total, 7)
        assert np.abs(kind.take(places, IDS[~gone]) - data.images[~gone][places]).max() < 1e-6
    kind.add(data.images[gone], IDS[gone])  # under the ids they had
    ids = np.concatenate([IDS[~gone], IDS[gone]])
    found, _ = kind.search(data.images, 60, WIDEST, ids)
    assert np.mean([own in row for own, row in zip(IDS, found, strict=True)]) > (
        0.9 if "rabitq" in name or "pq" in name else 0.99
    )


@pytest.mark.parametrize("name", JOINING)
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("offset", [0, 10**12])
def test_parts_joined_are_the_whole(kinds, data, tmp_path, name, mapped, offset):
    """Two empty copies of a trained index, filled, one read from its file: together they are the index itself."""
    whole = kinds[name]
    whole.write(tmp_path / "whole.faiss")
    base = type(whole).read(tmp_path / "whole.faiss", whole.build, DIM, ROWS, whole.mean)
    one, two = base.empty(), base.empty()
    assert one.total == two.total == 0 and not one.mapped
    cut = 1003  # not a multiple of fast-scan's blocks
    one.add(data.images[:cut], IDS[:cut])
    two.add(data.images[cut:], IDS[cut:] - offset)
    two.write(tmp_path / "two.faiss")
    two = type(whole).read(tmp_path / "two.faiss", whole.build, DIM, ROWS - cut, whole.mean, mapped)
    assert one.fits(two) and one.fits(whole)
    one.absorb(two, offset)
    assert one.total == ROWS
    mine, theirs = one.search(data.texts, 100, WIDEST, IDS), whole.search(data.texts, 100, WIDEST, IDS)
    assert np.abs(mine[1] - theirs[1]).max() < 1e-6
    assert recall(mine[0], theirs[0]) > 0.9  # equal codes come in any order
    if one.exact:
        assert np.array_equal(mine[0], theirs[0])
        assert np.abs(one.take(np.arange(ROWS), IDS) - data.images).max() < 1e-6
    assert whole.total == ROWS  # what was copied from is untouched


@pytest.mark.parametrize("name", ["hnsw", "hnsw_float16", "hnsw_sq8"])
def test_a_graph_is_neither_cut_nor_joined_but_filled_again(kinds, data, name):
    kind = kinds[name]
    assert not kind.joins
    with pytest.raises(NotImplementedError, match="removed"):
        kind.remove(IDS[:1])
    with pytest.raises(NotImplementedError, match="joined"):
        kind.absorb(kind)
    again = kind.empty()
    assert again.total == 0
    again.add(data.images, IDS)
    for mine, theirs in zip(
        again.search(data.texts, 10, WIDEST, IDS), kind.search(data.texts, 10, WIDEST, IDS), strict=True
    ):
        assert np.array_equal(mine, theirs)


def test_what_fits_and_what_does_not(kinds, data):
    assert not kinds["ivf"].fits(kinds["flat"]) and not kinds["ivf"].fits(kinds["ivf_sq8"])
    for name in ("ivf", "ivf_pq", "ivf_sq8", "scan_pq"):
        kind = kinds[name]
        assert make(name, data.images).fits(kind)
        assert not make(name, data.images, sample=slice(0, 1500)).fits(kind)  # other centroids or words
        other = type(kind).new(kind.build, DIM, kind.mean + np.float32(1e-3), data.images)
        assert not other.fits(kind)


@pytest.mark.parametrize("name", ["ivf_sq8", "scan_pq"])
def test_codes_of_another_training_do_not_fit_even_among_the_same_centroids(kinds, name):
    other = kinds[name].empty()
    values = other.index.sq.trained if "sq8" in name else other.index.pq.centroids
    changed = faiss.vector_to_array(values)
    changed[0] += 1
    assert kinds[name].fits(other)
    faiss.copy_array_to_vector(changed, values)
    assert not kinds[name].fits(other)


@pytest.mark.parametrize("centred", [True, False])
def test_centring_changes_neither_ranking_nor_score(data, centred):
    build = {**BUILDS["ivf"], "centred": centred}
    kind = KINDS["ivf"].new(build, DIM, data.images.mean(axis=0) if centred else None, data.images)
    kind.add(data.images, IDS)
    found, scores = kind.search(data.texts, 10, WIDEST, IDS)
    best, cosines = exact(data.texts, data.images, 10)
    assert recall(found, IDS[best]) > 0.999
    assert np.abs(scores - cosines).max() < 2e-6
    stored = kind.index.quantizer.reconstruct_n(0, 40).mean(axis=0)
    assert (np.linalg.norm(stored) < 0.3) == centred


@pytest.mark.parametrize("name", LISTS)
def test_centroids_are_as_near_to_the_rows_as_one_factor_brings_them(kinds, data, name):
    """FAISS's have norm 1; left so, codes would have to hold much more than a row's distance to its list's rows."""
    kind = kinds[name]
    rows = (data.images - kind.mean).astype(np.float64)
    centroids = kind.index.quantizer.reconstruct_n(0, kind.build["nlist"]).astype(np.float64)
    nearest = centroids[np.argmax(rows @ centroids.T, axis=1)]
    here = ((rows - nearest) ** 2).sum(axis=1).mean()
    assert here == pytest.approx(kind.drift(data.images), rel=1e-4)
    assert all(((rows - factor * nearest) ** 2).sum(axis=1).mean() > here for factor in (0.9, 1.1))


def test_drift_grows_when_other_rows_come(kinds, data, make_data):
    other = make_data(ROWS, DIM, 1, seed=5).images
    assert kinds["ivf"].drift(other) > 1.3 * kinds["ivf"].drift(data.images)
    assert kinds["flat"].drift(other) is None and kinds["hnsw"].drift(other) is None


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("mapped", [True, False])
def test_rows_are_read_back(kinds, data, tmp_path, name, mapped):
    kind = kinds[name]
    kind.write(tmp_path / "index.faiss")
    kind = type(kind).read(tmp_path / "index.faiss", kind.build, DIM, ROWS, kind.mean, mapped)
    for rows in (np.arange(ROWS)[::-1], np.array([5, 5, 1999, 0]), np.zeros(0, np.int64)):
        taken = kind.take(rows, IDS)
        assert taken.dtype == np.float32 and taken.shape == (len(rows), DIM)
        assert np.abs(taken - data.images[rows]).max(initial=0) < 1e-6
    ids = np.random.default_rng(0).permutation(np.iinfo(np.int64).max - np.arange(50) * 10**14)  # in no order
    kind = make(name, data.images[:50], ids)
    assert np.abs(kind.take(np.arange(49, -1, -1), ids) - data.images[49::-1]).max() < 1e-6
    kind = kind.empty()
    kind.add(data.images[:3], IDS[:3])
    assert np.abs(kind.take(np.arange(3), IDS[:3]) - data.images[:3]).max() < 1e-6
    kind.add(data.images[3:9], IDS[3:9])  # what was remembered of their places is made anew
    assert np.abs(kind.take(np.arange(9), IDS[:9]) - data.images[:9]).max() < 1e-6


@pytest.mark.parametrize("name", [name for name in BUILDS if name not in EXACT])
def test_codes_are_no_rows(kinds, name):
    with pytest.raises(ValueError, match="does not hold its rows"):
        kinds[name].take(np.arange(3), IDS)


@pytest.mark.parametrize("name", list(BUILDS))
@pytest.mark.parametrize("mapped", [True, False])
def test_written_and_read(kinds, data, tmp_path, name, mapped):
    kind = kinds[name]
    setting = {"nprobe": 3, "efSearch": 20}
    kind.keep_setting(setting)
    path = tmp_path / "index.faiss"
    kind.write(path)
    again = type(kind).read(path, kind.build, DIM, ROWS, kind.mean, mapped)
    assert again.mapped == mapped and (again.dim, again.total) == (DIM, ROWS)
    mine, theirs = kind.search(data.texts, 10, setting, IDS), again.search(data.texts, 10, setting, IDS)
    assert np.array_equal(mine[0], theirs[0]) and np.array_equal(mine[1], theirs[1])
    alone = faiss.read_index(str(path))  # FAISS without us: same ids, scores less <q, m>
    scores, labels = alone.search(data.texts, 10)
    assert np.array_equal(labels, mine[0]) or np.abs(np.sort(scores) - np.sort(mine[1])).max() < 1
    shift = 0 if kind.mean is None else (data.texts @ kind.mean)[:, None]
    assert np.allclose(np.where(labels < 0, 0, scores + shift), np.where(labels < 0, 0, mine[1]), atol=1e-6)


@pytest.mark.parametrize("name", list(BUILDS))
@pytest.mark.parametrize(("rows", "dim"), [(2000, 32), (1600, 64)])
def test_bytes_are_known_beforehand(make_data, tmp_path, name, rows, dim):
    kind = make(name, make_data(rows, dim, 1).images, np.arange(rows))
    kind.write(tmp_path / "index.faiss")
    size = (tmp_path / "index.faiss").stat().st_size
    assert type(kind).bytes_needed(kind.build, rows, dim) == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize("name", list(BUILDS))
def test_threads_find_the_same(kinds, data, name):
    kind, rows = kinds[name], np.arange(ROWS) % 5 > 0
    expected = kind.search(data.texts, 20, {"nprobe": 5, "efSearch": 30}, IDS, Allowed(rows))
    allowed = Allowed(rows)
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(kind.search, data.texts, 20, {"nprobe": 5, "efSearch": 30}, IDS, allowed) for _ in range(16)
        ]
        takes = [pool.submit(make("ivf", data.images).take, np.arange(ROWS), IDS) for _ in range(2)]
    assert all(np.array_equal(job.result()[0], expected[0]) for job in jobs)
    assert all(np.abs(job.result() - data.images).max() < 1e-6 for job in takes)


@pytest.mark.parametrize("name", list(BUILDS))
def test_fewer_rows_than_codes_need_to_train(data, name, capfd):
    """One row is an index: nothing fails, nothing is printed."""
    for rows in (1, 5):
        build = {**BUILDS[name], **({"nlist": 1} if name in LISTS else {})}
        images = data.images[:rows]
        mean = images.mean(axis=0) if build.get("centred") else None
        kind = KINDS[build["kind"]].new(build, DIM, mean, images)
        kind.add(images, IDS[:rows])
        found, scores = kind.search(images, 3, CHEAPEST, IDS[:rows])
        assert (np.sort(found[:, : min(rows, 3)], axis=1) >= 0).all() and np.isfinite(scores[:, : min(rows, 3)]).all()
    assert capfd.readouterr().err == ""


def test_lists_with_few_rows_each_are_trained_in_silence(data, capfd):
    build = {**BUILDS["ivf_pq"], "nlist": 100}
    kind = KINDS["ivf"].new(build, DIM, data.images.mean(axis=0), data.images[:300])
    assert kind.index.nlist == 100
    assert capfd.readouterr().err == ""


def test_dimensions_that_codes_do_not_divide(data):
    build = {**BUILDS["ivf_pq"], "dims_per_code": 3}
    with pytest.raises(ValueError, match=r"dims_per_code=3 does not divide D=32.*take 2"):
        KINDS["ivf"].new(build, DIM, None, data.images)


@pytest.mark.parametrize("name", JOINING)
def test_a_mapped_index_is_not_written_into(kinds, tmp_path, name):
    kind = kinds[name]
    kind.write(tmp_path / "index.faiss")
    mapped = type(kind).read(tmp_path / "index.faiss", kind.build, DIM, ROWS, kind.mean)
    for change in (
        lambda: mapped.remove(IDS[:5]),
        lambda: mapped.absorb(kind),
        lambda: mapped.add(np.eye(1, DIM), IDS[:1]),
    ):
        with pytest.raises(AssertionError, match="mapped"):
            change()
    assert mapped.total == ROWS


@pytest.mark.parametrize("name", list(BUILDS))
def test_what_a_search_compares(kinds, name):
    kind = kinds[name]
    few, many = (
        kind.scanned(setting, ROWS) for setting in ({"nprobe": 1, "efSearch": 1}, {"nprobe": 99, "efSearch": 9999})
    )
    assert many >= ROWS and (few == ROWS or few < ROWS / 10 or kind.build.get("nlist") == 1)


@pytest.mark.parametrize("name", list(BUILDS))
def test_a_file_that_is_not_what_the_manifest_says(kinds, tmp_path, name):
    kind = kinds[name]
    path = tmp_path / "index.faiss"
    kind.write(path)
    for total, dim in ((1999, 32), (2000, 31)):
        with pytest.raises(ValueError, match="is not the FAISS index of"):
            type(kind).read(path, kind.build, dim, total, kind.mean)
    alike = [
        {"scan_sq8", "ivf_sq8"},
        {"scan_pq", "ivf_pq"},
        {"scan_rabitq4", "ivf_rabitq4"},
        {"hnsw_float16", "hnsw_sq8"},
    ]
    for other, build in BUILDS.items():
        if other != name:  # alike: the header is the same, what comes behind it is not
            said = "the manifest says" if {name, other} in alike else "is not the FAISS index of"
            with pytest.raises(ValueError, match=said):
                KINDS[build["kind"]].read(path, build, DIM, ROWS, None)


@pytest.mark.parametrize(
    ("name", "other"), [("ivf_pq", {"dims_per_code": 4}), ("ivf_rabitq4", {"bits": 5}), ("hnsw", {"M": 8})]
)
def test_a_file_of_other_codes_or_links(kinds, tmp_path, name, other):
    kind = kinds[name]
    kind.write(tmp_path / "index.faiss")
    with pytest.raises(ValueError, match="manifest"):
        type(kind).read(tmp_path / "index.faiss", {**kind.build, **other}, DIM, ROWS, None)


@pytest.mark.parametrize("name", list(BUILDS))
def test_a_query_that_is_no_number_finds_no_row_that_is_not_there(kinds, data, name):
    queries = np.vstack([data.texts[:1], np.full((1, DIM), np.nan, np.float32)])
    found, scores = kinds[name].search(queries, 5, WIDEST, IDS)
    assert np.isin(found[0], IDS).all() and np.isfinite(scores[0]).all()
    assert np.isin(found, [*IDS, -1]).all()
    assert np.isneginf(scores[found < 0]).all()
    assert name != "flat" or (found[1] == -1).all()


@pytest.mark.parametrize("name", ["ivf_sq8", "scan_sq8", "hnsw_sq8"])
def test_rows_beyond_the_training_rows_are_not_cut_off(data, name):
    """Bytes reach a tenth further at both ends than the rows that they were made for."""
    build = BUILDS[name]
    mean = np.zeros(DIM, np.float32) if build["kind"] == "ivf" else None
    kind = KINDS[build["kind"]].new({**build, "nlist": 1} if mean is not None else build, DIM, mean, 0.87 * data.images)
    kind.add(data.images, IDS)
    found, scores = kind.search(data.texts, 10, WIDEST, IDS)
    truth = np.take_along_axis(data.texts.astype(np.float64) @ data.images.astype(np.float64).T, found // 3, 1)
    assert np.abs(scores - truth).max() < 0.015


@pytest.mark.parametrize("name", LISTS)
def test_rows_that_are_all_equal(data, name):
    """Less their mean they are nothing at all: every one is still found."""
    images = np.repeat(data.images[:1], 40, axis=0)
    build = {**BUILDS[name], "nlist": 1}
    kind = KINDS["ivf"].new(build, DIM, images[0], images)
    kind.add(images, IDS[:40])
    found, scores = kind.search(data.texts[:5], 40, CHEAPEST, IDS[:40])
    assert (np.sort(found, axis=1) == IDS[:40]).all()
    assert np.abs(scores - data.texts[:5] @ images[0][:, None]).max() < 0.02


@pytest.mark.parametrize("name", ["ivf_rabitq", "ivf_rabitq4"])
def test_queries_are_rounded_finely_for_rabitq(kinds, data, name):
    kind = kinds[name]
    _, scores = kind.search(data.texts, 200, WIDEST, IDS)
    unrounded = faiss.IVFRaBitQSearchParameters()
    unrounded.nprobe, unrounded.qb = 40, 0
    expected = kind.index.search(data.texts, 200, params=unrounded)[0] + (data.texts @ kind.mean)[:, None]
    assert np.abs(scores - expected).max() < 0.02
