"""The five studies, and the example of studies/README.md, as small as they run, for tests that hold for all of them."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

from conftest import ROOT

# Fields of Config that make a run of two small models last a moment.
SMALL = {
    "balls_and_urns": "tasks=(2, 3) steps=(10, 20) n_layers=2 n_heads=2 d_model=16 batch_size=8 n_test=8 seq_len=4",
    "grokking": "operations=('x_div_y',) modulus=11 widths=(16,) heads=(2,) updates=20 batch_size=16 warmup=2 seeds=1",
    "analogy": "num_relations=(30,) n_layer=2 d_model=(16,) epochs=8 seeds=1",
    "reversal": "arms=('standard', 'looped_k2', 'oracle') num_steps=20 n_test=4 test_lengths=(5,) max_len=4 n_heads=1"
    " hidden_size=16 inference_iterations_list=(2,) seeds=1",
    "parity": "dim_ambient=(5,) n_train_tasks=(3,) gpt2_width=8 n_heads=1 n_layers=2 batch_size=4 warmup=1 steps=20"
    " context_length=3 n_test_tasks=2 n_test_sequences=2",
    "recall": "updates=40 width=16 batch_size=8 n_test=16 seeds=1",
}
SMALL = {name: dict(re.findall(r"(\w+)=(\(.*?\)|\S+)", f"{fields} device='cpu'")) for name, fields in SMALL.items()}


def folder_of(study: str) -> Path:
    return ROOT if study == "balls_and_urns" else ROOT / "studies" / study


def source(study: str, script: str) -> str:
    """experiment.py or plot.py of a study; of the example as it stands on the page."""
    if study != "recall":
        return (folder_of(study) / script).read_text()
    page = (ROOT / "studies" / "README.md").read_text()
    return page.split(f"<!-- {script} -->\n```python\n")[1].split("```\n")[0]


def copy(study: str, folder: Path, small: bool = True) -> Path:
    """A folder with the scripts of a study and harness.py alone, with small defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    text = source(study, "experiment.py")
    for field, value in SMALL[study].items() if small else ():
        text, n = re.subn(rf"(?m)^(    {field}: [^=\n]+ = ).*?(?=  #)", rf"\g<1>{value}", text)
        assert n == 1, field
    (folder / "experiment.py").write_text(text)
    (folder / "plot.py").write_text(source(study, "plot.py"))
    shutil.copy(ROOT / "harness.py", folder)
    return folder


def load(script: Path, name: str) -> ModuleType:
    """A script as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, script)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
