"""What people get wrong, over all commands: one line that says what to do, before anything is started or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from PIL import Image

from benchmarks import matrix
from medr1_ray import __main__ as entry
from medr1_ray import answer, evaluate, sft, timeline, train
from medr1_ray.config.loading import load_config, write_config
from medr1_ray.data.phantoms import __main__ as phantoms
from medr1_ray.data.prepare import __main__ as prepare
from medr1_ray.data.readers.manifest import MANIFEST_FILE
from medr1_ray.tiny import __main__ as tiny
from tests.repository import REPOSITORY

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train.main,
    "sft": sft.main,
    "evaluate": evaluate.main,
    "answer": answer.main,
    "timeline": timeline.main,
    "prepare": prepare.main,
    "phantoms": phantoms.main,
    "tiny": tiny.main,
    "matrix": matrix.main,
    "medr1-ray": entry.main,
}
CONFIG = f"--config {REPOSITORY}/configs/phantom_cpu.yaml"
RUN = f"{CONFIG} run.dir=new data.root=phantoms"
MATRIX = f"--config {REPOSITORY}/configs/matrix/phantoms.yaml"
TABLE = f"{CONFIG} run.dir=new data.format=table data.root=."
EVALUATE = "--model tiny --data data --split test"
ASK = "--model tiny --image scan.png --question Which? --options CT;MRI"
FILE = "--model tiny --image . --csv questions.csv"

# Command, arguments, and what its line must say: what was given, and what to do.
CASES = [
    # Files of settings.
    ("train", "--config absent.yaml", ["absent.yaml does not exist"]),
    ("train", "--config scan.png", ["scan.png cannot be read", "give a YAML file"]),
    ("train", "--config folder", ["folder is a folder", "give a YAML file"]),
    ("train", "--config torn.yaml", ["torn.yaml is not valid YAML", "line 1"]),
    ("train", "--config list.yaml", ["list.yaml must hold a mapping of settings, not list"]),
    ("train", "--config twice.yaml", ["'steps' is given twice"]),
    ("train", "--config empty.yaml", ["run is required", "data is required", "train is required"]),
    ("train", "--config based.yaml", ["absent.yaml does not exist (named as a base by"]),
    # Names and values of settings.
    ("train", f"{RUN} train.stpes=3", ["train.stpes is not a setting", "did you mean train.steps?"]),
    ("train", f"{RUN} optimizer.lr=1", ["optimizer is not a setting", "the top level has:"]),
    ("train", f"{RUN} train.steps", ["'train.steps' is not of the form key.sub=value"]),
    ("train", f"{RUN} train.steps=many", ["train.steps='many'", "valid integer"]),
    ("train", f"{RUN} train.steps=0", ["train.steps=0", "greater than or equal to 1"]),
    ("train", f"{RUN} train.steps=true", ["train.steps=True", "a number"]),
    ("train", f"{RUN} train.steps=2.5", ["train.steps=2.5", "integer"]),
    ("train", f"{RUN} train.steps=null", ["train.steps=None", "integer"]),
    ("train", f"{RUN} train.steps=[", ["'train.steps=[' is not valid YAML"]),
    ("train", f"{RUN} train=3", ["train=3"]),
    ("train", f"{RUN} data.seed=-1", ["data.seed=-1", "greater than or equal to 0"]),
    ("train", f"{RUN} train.seed=4294967296", ["train.seed=4294967296", "less than or equal to 4294967295"]),
    ("train", f"{RUN} data.seed=4294967296", ["data.seed=4294967296", "less than or equal to 4294967295"]),
    ("train", f"{RUN} data.phantom_images=8 --dry-run", ["data.phantom_images=8", "greater than or equal to 9"]),
    ("train", f"{RUN} run.dir=$HOME/new", ["run.dir='$HOME/new'", "$HOME in a path is a variable that the shell has"]),
    ("train", f"{RUN} run.dir=~nobody-here/new", ["run.dir='~nobody-here/new'", "~nobody-here is no user's home"]),
    ("train", f"{RUN} model.path=${{HOME}}/model", ["model.path='${HOME}/model'", "a variable that the shell has not"]),
    ("train", f"{RUN} data.root=$DATA", ["data.root='$DATA'", "a variable that the shell has not replaced; give its"]),
    ("train", f"{RUN} run.storage=s3://$BUCKET/a", ["run.storage='s3://$BUCKET/a'", "a variable that the shell has"]),
    ("train", f"{TABLE} data.table.file=[a.csv,$B.csv]", ["data.table.file=", "a variable that the shell has not"]),
    ("train", "--config $HOME/a.yaml", ["argument --config: $HOME in a path is a variable that the shell has not"]),
    ("train", "--config variable.yaml", ["variable.yaml: base='$HOME/a.yaml'", "a variable that the shell has not"]),
    ("train", f"{RUN} learner.learning_rate=.inf", ["learner.learning_rate=inf", "finite"]),
    ("train", f"{RUN} learner.learning_rate=.nan", ["learner.learning_rate=nan", "finite"]),
    ("train", f"{RUN} learner.learning_rate=-1", ["learner.learning_rate=-1", "greater than 0"]),
    ("train", f"{RUN} loss.clip_low=1.5", ["loss.clip_low=1.5", "less than 1"]),
    ("train", f"{RUN} train.steps=450 learner.warmup_steps=500", ["learner.warmup_steps=500", "use at most 450"]),
    ("train", f"{RUN} learner.betas=[0.9]", ["learner.betas"]),
    ("train", f"{RUN} mode=thinking", ["mode='thinking'", "'think', 'no_think' or 'think_after'"]),
    ("train", f"{RUN} objective=sft", ["objective=sft", "python -m medr1_ray.sft"]),
    ("train", f"{RUN} learner.deepspeed.zero_optimisation.offload_optimizer.device=cpu", ["zero_optimization?"]),
    ("train", f"{RUN} learner.deepspeed.zero_optimization.offload_optimizer.device=nvme", ["nvme", "give cpu"]),
    ("train", f"{RUN} learner.deepspeed.zero_optimization=2", ["zero_optimization=2", "learner.zero_stage"]),
    ("train", f"{RUN} learner.deepspeed.bf16.enabled=true", ["learner.deepspeed.bf16", "remove it"]),
    ("train", f"{RUN} rollout.engine.gpu_mem_util=0.3", ["gpu_mem_util=0.3", "gpu_memory_utilization?"]),
    ("train", f"{RUN} rollout.engine=8", ["rollout.engine=8", "a mapping"]),
    ("train", f"{RUN} rollout.engine.max_num_seqs=abc", ["max_num_seqs='abc'", "takes int"]),
    ("train", f"{RUN} run=x", ["run='x'", "a mapping of settings"]),
    ("train", f"{RUN} run.dir=", ["run.dir=None", "a path"]),
    ("train", f"{RUN} data.root=scan.png", ["data.root=scan.png", "is a file"]),
    ("train", f"{RUN} cluster.address=localhost:1", ["cluster.address='localhost:1' does not answer"]),
    ("train", f"{RUN} reward.functions={{}}", ["reward.functions={}", "at least one"]),
    ("train", f"{RUN} cluster.weight_transport=nccl", ["cluster.weight_transport=nccl", "object_store"]),
    (
        "train",
        f"{RUN} cluster.weight_transport=nccl learner.gpus_per_rank=1 rollout.gpus_per_actor=0.5",
        ["rollout.gpus_per_actor=0.5", "NCCL refuses two ranks on one GPU", "give both whole GPUs"],
    ),
    ("train", f"{RUN} train.prompts_per_step=1 learner.world_size=2", ["prompts_per_step=1", "use at least 2"]),
    ("train", f"{RUN} data.min_pass_rate=0.2", ["data.min_pass_rate=0.2", "set pass_rates"]),
    ("train", f"{RUN} data.format=csvs", ["data.format='csvs'", "phantoms"]),
    ("train", f"{RUN} reward.functions={{acuracy:1}}", ["acuracy"]),
    ("train", f"{RUN} reward.functions.acuracy=1", ["acuracy", "accuracy"]),
    ("train", f"{RUN} reward.functions={{nowhere:f:1}}", ["nowhere"]),
    ("train", f"{RUN} reward.functions={{'json:dumps':1}}", ["'json:dumps' takes (obj, *,", "(completion, question"]),
    ("train", f"{RUN} --dry-run reward.functions={{'json:dumps':1}}", ["'json:dumps' takes (obj, *,"]),
    ("train", f"{RUN} --epochs 3", ["unrecognized arguments: --epochs 3; `python -m medr1_ray.train --help` lists"]),
    # What the settings name.
    ("train", f"{RUN} data.modalities=[Xray]", ["'Xray' is not a modality of the data", "it has CT"]),
    ("train", f"{RUN} data.question_types=[Grading]", ["'Grading' is not a question type", "has Anatomy"]),
    ("train", f"{RUN} data.sampling_weights.Grading=2", ["'Grading' is not a modality or", "has Anatomy"]),
    ("train", f"{RUN} data.format=omnimedvqa data.root=absent", ["data.root=absent is not a folder"]),
    ("train", f"{RUN} data.format=omnimedvqa data.root=folder", ["folder"]),
    ("train", f"{RUN} data.format=prepared data.root=folder", ["folder"]),
    ("train", f"{RUN} data.format=medr1", ["data.train_file=None", "needs both"]),
    ("train", f"{RUN} data.image_size=1024", ["data.image_size=1024", "allowed: 56 to 392"]),
    ("train", f"{RUN} model.path=absent", ["'absent' does not exist", "`tiny`"]),
    ("train", f"{RUN} model.path=folder", ["folder", "is not a checkpoint"]),
    ("train", f"{RUN} --rollout-only --replay folder", ["--rollout-only", "--replay folder", "one of the two"]),
    ("train", f"{RUN} run.storage=memory://a", ["run.storage='memory://a'", "use s3://"]),
    ("train", f"{RUN} run.dir=owned", ["run.dir='owned' has a 'config.yaml' that no run left", "choose another"]),
    ("train", f"{RUN} mode=think", ["rollout.max_tokens=8", "use at least 14"]),
    ("train", f"{RUN} rollout.max_tokens=20000", ["rollout.max_tokens=20000", "8,192 positions", "lower one"]),
    ("train", f"{RUN} reward.functions={{\"accuracy\":0}}", ["all weights are 0"]),
    ("sft", f"{RUN} model.path=Qwen/Qwen2-VL-2B-Instruct", ["not a folder here", "hf download"]),
    ("train", f"{RUN} rollout.max_prompt_tokens=5", ["rollout.max_prompt_tokens=5", "9 tokens"]),
    ("train", f"{TABLE} data.table.file=named.csv", ["the image or the question or the answer; it has x"]),
    ("train", f"{TABLE} data.table.file=gap.csv", ["A, C seem to be the options, but there is none for B"]),
    ("train", f"{RUN} data.modalities=[Xray,PETT]", ["'Xray', 'PETT' are not each a modality of the data"]),
    # Where to write, and what to resume.
    ("train", f"{RUN} run.dir=scan.png", ["run.dir='scan.png' cannot be made", "choose another folder"]),
    ("train", f"{RUN} run.dir=scan.png/new", ["run.dir='scan.png/new' cannot be made", "choose another folder"]),
    ("train", f"{RUN} run.dir=/proc/new", ["run.dir='/proc/new' cannot be", "choose"]),
    ("train", f"{RUN} run.dir=loop", ["run.dir='loop' cannot be made", "is a link that leads nowhere"]),
    ("train", f"{RUN} run.dir=prepared", ["run.dir='prepared' holds prepared data", "choose another folder"]),
    ("train", f"{RUN} run.dir=data", ["run.dir='data' holds data in OmniMedVQA's layout", "choose another folder"]),
    ("train", f"{RUN} run.dir=model", ["run.dir='model' holds a model (config.json)", "choose another folder"]),
    ("train", f"{TABLE} data.table.file=gap.csv run.dir=.", ["run.dir='.' is data.root too", "choose another folder"]),
    ("sft", f"{RUN} run.dir=loop/new", ["run.dir='loop/new' cannot be made", "is a link that leads nowhere"]),
    ("train", f"{RUN} run.dir=done", ["run.dir='done' holds a run already", "--resume"]),
    ("train", f"{RUN} --resume", ["run.dir='new' holds no run to resume", "start without --resume"]),
    ("train", f"{RUN} run.dir=begun --resume", ["no checkpoint to resume from", "Start without --resume"]),
    ("train", f"{RUN} run.dir=done train.seed=9 --resume", ["train.seed is 9", "was started with 0", "Set it back"]),
    ("train", f"{RUN} run.dir=lost --resume", ["names checkpoint-7, which is not there"]),
    ("sft", f"{RUN} rollout.temperature=0.5", ["rollout.temperature=0.5", "set it to 1"]),
    ("sft", f"{RUN} data.modalities=[PETT]", ["'PETT' is not a modality of the data"]),
    ("sft", f"{RUN} rollout.max_tokens=2", ["rollout.max_tokens=2", "use at least 4"]),
    # Evaluating.
    ("evaluate", "--model absent --data data --split test", ["'absent' does not exist", "`tiny`"]),
    ("evaluate", "--model $M --data data --split test", ["argument --model: $M in a path is a variable"]),
    ("evaluate", "--model tiny --data absent --split test", ["--data absent does not exist", "give the folder"]),
    ("evaluate", "--model tiny --data folder --split test", ["--data folder has neither a manifest", "--config"]),
    ("evaluate", "--model tiny --data data --split tset", ["--split 'tset'", "train, test"]),
    ("evaluate", "--model tiny --data prepared --split grouped/tset", ["--split grouped/tset", "mean grouped/test?"]),
    ("evaluate", f"{EVALUATE} --questions -5", ["--questions -5", "give 1 or more"]),
    ("evaluate", f"{EVALUATE} --questions 0", ["--questions 0", "give 1 or more"]),
    ("evaluate", f"{EVALUATE} --samples -1", ["--samples -1", "0 for none"]),
    ("evaluate", f"{EVALUATE} --samples x", ["--samples: invalid int value: 'x'"]),
    ("evaluate", f"{EVALUATE} --scoring letters", ["invalid choice: 'letters'", "likelihood"]),
    ("evaluate", f"{EVALUATE} --against absent", ["--against absent is not an evaluation", "report.json"]),
    ("evaluate", f"{EVALUATE} --config scan.png", ["scan.png cannot be read"]),
    ("evaluate", f"{EVALUATE} --out scan.png", ["--out scan.png cannot be made", "is a file", "choose another"]),
    ("evaluate", f"{EVALUATE} --out loop", ["--out loop cannot be made", "is a link that leads nowhere"]),
    ("evaluate", f"{EVALUATE} --out folder", ["--out folder holds files that are not of an evaluation", "notes.txt"]),
    ("evaluate", f"{EVALUATE} --out evaluated", ["evaluated holds an evaluation with image_fit '?'", "another --out"]),
    ("evaluate", "--model tiny --data prepared --split own", ["--split own: prepared has no split 'own'; it has gr"]),
    ("evaluate", f"{EVALUATE} --against garbled", ["image.jsonl, line 1: 'garbage' is not a mapping in JSON"]),
    ("evaluate", f"{EVALUATE} rollout.max_token=4", ["did you mean rollout.max_tokens?"]),
    ("evaluate", "--model asked --data data --split test", ["data.image_size='big'", "(in ", "asked/medr1_ray.json)"]),
    ("answer", f"{ASK} --model asked", ["data.image_size='big'", "asked/medr1_ray.json)"]),
    # Answering.
    ("answer", "--model tiny --image scan.png", ["give --question and --options, or --csv"]),
    ("answer", f"{ASK} --out a.csv", ["--out a.csv is for the answers to --csv"]),
    ("answer", f"{ASK} --csv questions.csv", ["but not both"]),
    ("answer", "--model tiny --image . --csv questions.csv --out questions.csv", ["--out questions.csv"]),
    ("answer", f"{ASK} --model absent", ["'absent' does not exist", "`tiny`"]),
    ("answer", f"{ASK} --image $DATA/scan.png", ["argument --image: $DATA in a path is a variable"]),
    ("answer", f"{ASK} --image absent.png", ["--image absent.png: does not exist", "give the file"]),
    ("answer", f"{ASK} --image questions.csv", ["--image questions.csv: image unreadable", "replace the file"]),
    ("answer", f"{ASK} --mode think rollout.max_tokens=4", ["rollout.max_tokens=4", "use at least 14"]),
    ("answer", "--model tiny --image absent --csv questions.csv", ["--image absent is not a folder", "--csv give"]),
    ("answer", "--model tiny --image scan.png --csv questions.csv", ["--image scan.png is not a folder"]),
    ("answer", f"{ASK} --image torn.yaml", ["--image torn.yaml"]),
    ("answer", f"{ASK} --image folder", ["--image folder"]),
    ("answer", f"{ASK} --options CT", ["the options are 'CT'"]),
    ("answer", f"{ASK} --mode thinking", ["invalid choice: 'thinking'"]),
    ("answer", f"{ASK} rollout.max_tokens=1", ["rollout.max_tokens=1", "use at least 4"]),
    ("answer", f"{FILE} --out no/such/dir/a.csv", ["--out no/such/dir/a.csv", "create it, or choose another"]),
    ("answer", f"{FILE} --out folder", ["--out folder is a folder"]),
    ("answer", "--model tiny --image . --csv absent.csv", ["--csv absent.csv: cannot be read"]),
    ("answer", "--model tiny --image . --csv scan.png", ["--csv scan.png: cannot be read", "UTF-8"]),
    ("answer", "--model tiny --image . --csv semicolons.csv", ["by commas, and has 'image;question;options'"]),
    ("answer", "--model tiny --image . --csv header.csv", ["--csv header.csv: no questions"]),
    ("answer", "--model tiny --image . --csv torn.yaml", ["--csv torn.yaml: no column 'image', 'question', 'options'"]),
    # What a run left.
    ("timeline", "absent", ["absent holds no spans.jsonl", "give the directory of a run"]),
    ("timeline", "spans --first 2000", ["--first 2000", "it has steps 1 to 1"]),
    ("timeline", "spans --last 0", ["--last 0", "it has steps 1 to 1"]),
    ("timeline", "spans --first -1", ["--first -1", "0 or more"]),
    ("timeline", "spans --first 3 --last 1", ["--first 3 is after --last 1", "earlier step first"]),
    ("timeline", "spans --first x", ["--first: invalid int value: 'x'"]),
    ("timeline", "garbled", ["spans.jsonl, line 2: 'garbage' is not a mapping in JSON with step", "remove it"]),
    # Data.
    ("prepare", "--root absent --out out", ["--root absent"]),
    ("prepare", "--root folder --out out", ["--root folder"]),
    ("prepare", "--root data --out scan.png", ["--out scan.png is a file"]),
    ("prepare", "--root data --out out --medr1 absent", ["--medr1 absent", "give the folder of Med-R1's"]),
    ("prepare", "--root data --out loop", ["--out loop cannot be made", "is a link that leads nowhere"]),
    ("phantoms", "--out loop --images 2 --seed 0", ["--out loop cannot be made", "is a link that leads nowhere"]),
    ("tiny", "--out loop", ["--out loop cannot be made", "is a link that leads nowhere"]),
    ("matrix", f"{MATRIX} --out loop", ["out=loop cannot be made", "is a link that leads nowhere"]),
    ("prepare", "--root data --out spans", ["--out spans holds files that this command did not write"]),
    ("prepare", "--root data --out $DATA/out", ["argument --out: $DATA in a path is a variable"]),
    ("prepare", "--root data --out out --seed 4294967296", ["--seed 4294967296: give 0 or more, at most 4294967295"]),
    ("prepare", "--root data --out out --seed -1", ["--seed -1: give 0 or more, at most 4294967295"]),
    ("prepare", "--root data --out out --workers 0", ["--workers 0", "1 or more"]),
    ("phantoms", "--out out --images 0 --seed 0", ["0"]),
    ("phantoms", "--out out --images 2 --seed -1", ["-1"]),
    ("phantoms", "--out out --images 2 --seed 4294967296", ["seed is 4294967296; it must be at most 4294967295"]),
    ("phantoms", "--out out --images 2 --seed 0 --size 99999999", ["size is 99999999", "at most 4096"]),
    ("prepare", "--table named.csv --groups column --columns image=x question=y answer=A --out out", ["no group colu"]),
    ("prepare", "--table named.csv --out out", ["the image or the question or the answer", "--columns image=NAME"]),
    ("prepare", "--table gap.csv --out out", ["A, C seem to be the options, but there is none for B"]),
    ("phantoms", "--out scan.png --images 2 --seed 0", ["scan.png"]),
    ("phantoms", "--out folder --images 2 --seed 0", ["folder"]),
    ("tiny", "--out out --seed -1", ["--seed -1", "0 or more"]),
    ("tiny", "--out out --seed 4294967296", ["--seed 4294967296", "at most 4294967295"]),
    ("tiny", "--out out --steps 0", ["--steps 0", "1 or more"]),
    ("tiny", "--out out --threads 0", ["--threads 0", "1 or more"]),
    # Experiments, and the name of a command.
    ("matrix", "--config absent.yaml", ["--config absent.yaml cannot be read as YAML", "configs/matrix"]),
    ("matrix", "--config scan.png", ["--config scan.png cannot be read as YAML"]),
    ("matrix", "--config list.yaml", ["--config list.yaml"]),
    ("matrix", "--config matrix.yaml", ["outt is not a setting", "did you mean out?", "out is required"]),
    ("medr1-ray", "trian", ["'trian' is not a command", "did you mean train?"]),
    ("medr1-ray", "train", ["the following arguments are required: --config"]),
]


def write_place() -> None:
    """Fill the current folder with what the arguments name."""
    Image.new("RGB", (40, 30)).save("scan.png")
    texts = {
        "torn.yaml": "train: [",
        "list.yaml": "- 1",
        "twice.yaml": "train: {steps: 1, steps: 2}",
        "empty.yaml": "",
        "based.yaml": "base: absent.yaml",
        "variable.yaml": "base: $HOME/a.yaml",
        "matrix.yaml": "outt: x\nconfigs: [a]\nmethods: {grpo: {command: train}}\naxes: {no_think: {modality: []}}",
        "questions.csv": "image,question,options\nscan.png,Which?,CT;MRI\n",
        "named.csv": "x,y,A,B\nscan.png,Which?,CT,MRI\n",
        "gap.csv": "image,question,A,C,answer\nscan.png,Which?,CT,MRI,A\n",
        "semicolons.csv": "image;question;options\nscan.png;Which?;CT\n",
        "header.csv": "image,question,options\n",
        "owned/config.yaml": "mine: true",
    }
    Path("owned").mkdir()
    for name, text in texts.items():
        Path(name).write_text(text)
    folders = ("folder", "data/QA_information/Open-access", "prepared/splits", "spans", "garbled/answers")
    for folder in (*folders, "model", "evaluated", "asked"):
        Path(folder).mkdir(parents=True)
    Path("folder/notes.txt").touch()
    Image.new("RGB", (40, 30)).save("data/scan.png")
    question = {"question": "Which?", "option_A": "CT", "option_B": "MRI", "gt_answer": "CT", "image_path": "scan.png"}
    question |= {"dataset": "d", "question_type": "Modality Recognition", "modality_type": "CT(Computed Tomography)"}
    rows = [{"question_id": str(n), **question} for n in range(3)]
    Path("data/QA_information/Open-access/d.json").write_text(json.dumps(rows))
    (Path("prepared") / MANIFEST_FILE).touch()
    span = {"step": 1, "actor": "driver", "phase": "update", "start_seconds": 1, "end_seconds": 2}
    Path("spans/spans.jsonl").write_text(json.dumps(span) + "\n")
    Path("garbled/answers/image.jsonl").write_text("garbage\n")
    Path("prepared/splits/grouped.json").touch()
    Path("model/config.json").touch()
    Path("asked/medr1_ray.json").write_text('{"data": {"image_size": "big"}}')
    Path("garbled/settings.json").write_text('{"questions": "", "images": ""}')
    Path("evaluated/settings.json").write_text('{"image_fit": "?"}')
    Path("loop").symlink_to("loop")
    Path("garbled/spans.jsonl").write_text(f"{json.dumps(span)}\ngarbage\n{json.dumps(span)}\n")
    for name, checkpoint in (("begun", None), ("done", "checkpoint-2"), ("lost", "checkpoint-7")):
        checkpoints = Path(name) / "checkpoints"
        checkpoints.mkdir(parents=True)
        files = [REPOSITORY / "configs/phantom_cpu.yaml"]
        write_config(load_config(files, ["run.dir=done", "data.root=phantoms"]), Path(name) / "config.yaml")
        if checkpoint:
            (checkpoints / "latest").write_text(checkpoint)
    Path("done/checkpoints/checkpoint-2").mkdir()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the arguments name, as the current one."""
    monkeypatch.chdir(tmp_path)
    write_place()
    return tmp_path


@pytest.mark.parametrize(("command", "arguments", "says"), CASES, ids=[f"{c} {a[-60:]}" for c, a, _ in CASES])
def test_a_wrong_input_is_one_line(
    command: str,
    arguments: str,
    says: list[str],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(ray, "init", start)
    before = sorted(place.rglob("*"))
    words = arguments.replace(str(REPOSITORY), "\0").split()
    try:
        status = COMMANDS[command]([word.replace("\0", str(REPOSITORY)) for word in words])
    except SystemExit as error:  # argparse's own, which prints its usage first
        status = int(str(error.code))
    said = capsys.readouterr()
    assert status in (1, 2)
    everything = said.out + said.err
    assert "raceback" not in everything, everything
    *_, line = said.err.splitlines()
    for text in says:
        assert text in everything
    if status == 1:
        (only,) = (each for each in said.err.splitlines() if each.startswith("error: "))
        assert "is not valid:" in only or only == line, "several problems of settings are a list"
    assert sorted(place.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("answer", f"{FILE} --out results.csv"),
        ("answer", FILE),
        ("evaluate", f"{EVALUATE} --out results"),
        ("prepare", "--root data --out results"),
        ("phantoms", "--images 2 --seed 0 --out results"),
        ("tiny", "--out results"),
        ("matrix", f"{MATRIX} --out results"),
        ("train", f"{CONFIG} data.root=phantoms run.dir=results"),
    ],
)
def test_results_do_not_go_with_the_copy_of_a_job(
    command: str, arguments: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')
    before = sorted(place.rglob("*"))
    assert COMMANDS[command](arguments.split()) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert "in this Ray job's temporary copy of --working-dir, where results would be lost; give an absolute" in line
    assert sorted(place.rglob("*")) == before


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
    assert {command for command, _, _ in CASES} == set(COMMANDS)
