"""A made-up data set in CLIP_benchmark's layout."""

from tests.small import sample, write_tar


def benchmark_set(root, kind="classification", shards=2):
    """A made-up set as clip_benchmark_export_wds writes one."""
    for split, count in (("test", shards), ("train", 1)):
        for shard in range(count):
            members = []
            for i in range(3):
                key = f"s{3 * shard + i:07d}"
                more = {"cls": i} if kind == "classification" else {}
                captions = [] if more else [f"one of {i}", f"two of {i}"]
                members += sample(key, "red", captions, seed=i, **more)
            write_tar(root / split / f"{shard}.tar", members)
        (root / split / "nshards.txt").write_text(f"{count}\n")
    (root / "dataset_type.txt").write_text(kind)
    if kind == "classification":
        (root / "classnames.txt").write_text("red\ngreen\nblue")
        (root / "zeroshot_classification_templates.txt").write_text("a {c} picture\n{c}.")
    return root
