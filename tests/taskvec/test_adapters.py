"""What an adapter adds to a weight, against peft's own merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import family_model
from peft import LoraConfig, PeftModel, get_peft_model

from ilu_cli.taskvec.delta import Adapted, Checkpoint


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("scaled_by", ["r", "sqrt(r)"])
def test_the_sum_is_the_one_that_peft_merges(family: str, scaled_by: str, tmp_path: Path) -> None:
    """α/r, or α/√r of rank-stabilised LoRA (arXiv 2312.03732); GPT-2's weights are stored [in, out]."""
    family_model(family).save_pretrained(tmp_path / "base")
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "down_proj"]
    config = LoraConfig(r=9, lora_alpha=5, target_modules=targets, use_rslora=scaled_by != "r")
    adapted = get_peft_model(family_model(family), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
    adapted.save_pretrained(str(tmp_path / "adapter"))
    merged = PeftModel.from_pretrained(family_model(family), tmp_path / "adapter").merge_and_unload().state_dict()
    base = Checkpoint(tmp_path / "base")
    mine = Adapted(base, tmp_path / "adapter")
    changed = [n for n in mine.names if not mine.tensor(n).equal(base.tensor(n))]
    assert len(changed) == (12 if family == "gpt2" else 8)
    for name in mine.names:
        torch.testing.assert_close(mine.tensor(name), merged[name], rtol=1e-5, atol=1e-6)
