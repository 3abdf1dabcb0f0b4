"""`smd convert` on published checkpoints, on our own, on a hub made of folders and on the hub that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

from sm_diffusion.cli import main as cli
from sm_diffusion.denoisers.adapters import peft
from sm_diffusion.denoisers.checkpoints.weights import read_weights
from sm_diffusion.denoisers.pretrained.export import export_folder
from tests.helpers.golden import GOLDEN
from tests.helpers.qwen import MASK, tiny_qwen


def convert(*words: object) -> int:
    return cli.main(["convert", *map(str, words)])


@pytest.mark.parametrize("name", ["ckpt_mdlm", "ckpt_mdlm_sm"])
def test_a_published_checkpoint_becomes_ours_and_goes_back(tmp_path: Path, name: str, capsys: Any) -> None:
    published, ours = GOLDEN / f"{name}.ckpt", tmp_path / "ours.ckpt"
    assert convert("import", published, ours) == 0
    for kind in ("raw", "ema"):
        a, b = read_weights(published, weights=kind), read_weights(ours, weights=kind)
        assert a.denoiser.keys() == b.denoiser.keys()
        assert all(torch.equal(a.denoiser[key], b.denoiser[key]) for key in a.denoiser)
        assert all(torch.equal(a.soft_mask[key], b.soft_mask[key]) for key in a.soft_mask)
        out = tmp_path / f"{kind}.safetensors"
        assert convert("export", ours, out, "--weights", kind) == 0
        again = read_weights(out, weights="raw")
        assert all(torch.equal(a.denoiser[key], again.denoiser[key]) for key in a.denoiser)
        assert again.soft_mask.keys() == a.soft_mask.keys()
    capsys.readouterr()
    assert convert("list", ours) == 0
    out_text = capsys.readouterr().out
    assert "EMA        yes" in out_text
    assert ("raw_omega_s" in out_text) == name.endswith("_sm")


def test_listing_folders(tmp_path: Path, capsys: Any) -> None:
    peft.save(peft.attach(tiny_qwen(), peft.DORA, seed=0), tmp_path / "adapter", None)
    assert convert("list", tmp_path / "adapter", "--all") == 0
    out = capsys.readouterr().out
    assert "adapter folder" in out
    assert "omegas     none" in out
    assert "layers.1.self_attn.o_proj.lora_B.weight" in out


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    checkpoint = GOLDEN / "ckpt_mdlm.ckpt"
    cases = [
        (("list", tmp_path / "nothing.ckpt"), "nothing.ckpt"),
        (("list", tmp_path / "empty"), "is no model folder"),
        (("merge", tmp_path / "empty", tmp_path / "out"), "does not name its base: give --base"),
        (("merge", tmp_path / "empty", tmp_path / "full"), "exists already: give a new place"),
        (("adapter", checkpoint, tmp_path / "out"), "holds no adapter"),
        (("export", checkpoint, tmp_path / "out.bin"), "give a name that ends in .safetensors"),
        (("pull", "someone/model", tmp_path / "out"), "it needs a revision"),
        (("pull", "someone/model", tmp_path / "out", "--revision", "abc"), "could not be had from the Hugging Face"),
        (("push", tmp_path / "full", "me/model"), "log in with `hf auth login`"),
        (("push", tmp_path / "nowhere", "me/model"), "there is no such folder"),
    ]
    for words, message in cases:
        assert convert(*words) == 2, words
        error = capsys.readouterr().err
        assert message in error, (words, error)
        assert error.count("\n") == 1, error


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """huggingface_hub's functions over a folder: repositories below `root`, every upload one commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.created: list[tuple[str, bool]] = []
        self.asked: list[str] = []

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.created.append((repository, private))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        assert commit_message
        shutil.copytree(folder_path, self.root / repo_id / "snapshots" / COMMIT)
        url = f"https://huggingface.co/{repo_id}/commit/{COMMIT}"
        return huggingface_hub.CommitInfo(
            commit_url=url, commit_message=commit_message, commit_description="", oid=COMMIT
        )

    def snapshot_download(self, repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        """The files that match, in a folder named by the commit, as in the hub's cache."""
        self.asked.append(revision)
        stored, cache = self.root / repository / "snapshots" / COMMIT, self.root / "cache" / repository / COMMIT
        cache.mkdir(parents=True, exist_ok=True)
        for path in stored.iterdir():
            if any(path.match(pattern) for pattern in allow_patterns):
                shutil.copy(path, cache)
        return str(cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda _, *a, **k: hub.create_repo(*a, **k))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda _, **k: hub.upload_folder(**k))
    return hub


def test_what_is_pushed_is_pulled_and_merged_by_its_revision(tmp_path: Path, hub: FakeHub, capsys: Any) -> None:
    export_folder(tiny_qwen(), tmp_path / "base", mask_id=MASK)
    (tmp_path / "base" / "vocab.json").write_text("{}")
    (tmp_path / "base" / "modeling.py").write_text("raise SystemExit")
    peft.save(peft.attach(tiny_qwen(), peft.DORA, seed=0), tmp_path / "adapter", None)
    assert convert("push", tmp_path / "base", "me/base") == 0
    assert convert("push", tmp_path / "adapter", "me/adapter", "--public") == 0
    assert f"me/base at {COMMIT}" in capsys.readouterr().out
    assert hub.created == [("me/base", True), ("me/adapter", False)]
    assert convert("pull", "me/adapter", tmp_path / "pulled", "--revision", COMMIT) == 0
    names = {path.name for path in (tmp_path / "adapter").iterdir()} - {"README.md"}
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == names
    assert all((tmp_path / "pulled" / n).read_bytes() == (tmp_path / "adapter" / n).read_bytes() for n in names)
    base = ("--base", "me/base", "--revision", COMMIT, "--dtype", "float32")
    assert convert("merge", tmp_path / "pulled", tmp_path / "full", *base) == 0
    assert set(hub.asked) == {COMMIT}
    assert (tmp_path / "full" / "vocab.json").is_file(), "the tokenizer comes along"
    assert not (tmp_path / "full" / "modeling.py").exists(), "remote code does not"
    assert convert("pull", "me/base", tmp_path / "other") == 2, "a revision is needed"


@pytest.mark.parametrize(
    "error",
    [HTTPError("connection refused\nby peer"), LocalTokenNotFoundError("no token"), OSError("")],
    ids=["network", "login", "silent"],
)
def test_a_failed_upload_is_one_line(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    assert convert("push", tmp_path, "me/model") == 2
    message = capsys.readouterr().err
    assert f"the folder is still at {tmp_path}" in message
    assert message.count("\n") == 1
