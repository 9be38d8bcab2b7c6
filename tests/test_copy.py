"""COPY.md: each of its Python blocks runs and gives the right result. What it tells about frameworks is measured here.

python tests/test_copy.py          # prints the table of COPY.md, for the frameworks that are installed
"""

import ast
import copy
import csv
import functools
import importlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # as conftest.py does, for the command above

from test_ranks import free_port  # noqa: E402

import losses  # noqa: E402
import metrics  # noqa: E402

TEXT = (ROOT / "COPY.md").read_text(encoding="utf-8")
CPU = torch.device("cpu")


def sections():
    """{heading: its Python blocks}"""
    parts = re.split(r"^##+ (.+)\n", TEXT, flags=re.M)[1:]
    return {
        head: re.findall(r"```python\n(.*?)```", body, re.S) for head, body in zip(parts[::2], parts[1::2], strict=True)
    }


def code(section, number=None):
    """The block of this number, or all blocks of a section."""
    blocks = sections()[section]
    return "".join(blocks if number is None else [blocks[number]])


def run(section, names, number=None):
    exec(compile(code(section, number), f"COPY.md, {section}", "exec"), names)
    return names


# ---------------------------------------------------------------------------------------------------------------------
# A small problem: 64 samples, 5 classes; what two optimizer steps with batches of 32 do to the weights
# ---------------------------------------------------------------------------------------------------------------------

C, WEIGHT = 5, torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)
rng = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 8, generator=rng, dtype=torch.float64), torch.randint(C, (64,), generator=rng)
CRITERIA = {
    "plain": losses.FocalLoss,
    "weighted": lambda **options: losses.FocalLoss(weight=WEIGHT, **options),
    "f1": losses.F1Loss,
}
CASES = {
    "64 samples": (64, "plain"),
    "59 samples": (59, "plain"),
    "40 samples": (40, "plain"),
    "weights": (64, "weighted"),
    "F1": (64, "f1"),
}


def make_model():
    torch.manual_seed(1)
    return torch.nn.Linear(8, C).double()


def make_loader(n, batch_size=8):
    return DataLoader(TensorDataset(X[:n], Y[:n]), batch_size=batch_size)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def usual_names(n=64, kind="plain", batch_size=8):
    model = make_model()
    names = {
        "torch": torch,
        "device": CPU,
        "model": model,
        "criterion": CRITERIA[kind](),
        "epochs": 1,
        "num_classes": C,
    }
    names |= {"optimizer": torch.optim.SGD(model.parameters(), lr=0.5), "train_counts": [50, 20, 10, 5, 2]}
    return names | {"train_loader": make_loader(n, batch_size), "val_loader": make_loader(n)}


def big_batches(n, kind):
    """The model after one epoch with batches of 32."""
    model, criterion = make_model(), CRITERIA[kind]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for x, y in make_loader(n, 32):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    return model


def error(model, n, kind):
    """Relative error of the change of the weights."""
    big, start = flat(big_batches(n, kind)), flat(make_model())
    return ((flat(model) - big).norm() / (big - start).norm()).item()


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def test_every_block_of_the_page_is_run_by_a_test():
    run_here = set()
    for call in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("run", "code"):
            constants = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
            if constants:
                every = range(len(sections()[constants[0]]))
                run_here |= {(constants[0], i) for i in (constants[1:] or every)}
    assert run_here == {(section, i) for section, blocks in sections().items() for i in range(len(blocks))}


def test_every_stand_alone_module_has_a_section_and_no_block_is_long():
    import test_house

    assert {f"{name}.py" for name in [*test_house.MODULES, "labels"]} == {s for s in sections() if s.endswith(".py")}
    by_file = [block for section, blocks in sections().items() if section.endswith(".py") for block in blocks]
    assert max(len(block.splitlines()) for block in by_file) <= 15
    assert "[COPY.md](COPY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# In your loop
# ---------------------------------------------------------------------------------------------------------------------


def loop_model(n, kind):
    return run("A plain loop", usual_names(n, kind), 1)["model"]


@pytest.mark.parametrize("case", CASES)
def test_the_window_in_your_own_loop_equals_the_big_batch(case):
    assert error(loop_model(*CASES[case]), *CASES[case]) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_dividing_by_accum_is_right_only_for_full_windows_of_plain_means(case):
    n, kind = CASES[case]
    names = usual_names(n, kind)
    for i, (x, y) in enumerate(names["train_loader"]):
        (names["criterion"](names["model"](x), y) / 4).backward()
        if i % 4 == 3 or i == len(names["train_loader"]) - 1:
            names["optimizer"].step()
            names["optimizer"].zero_grad()
    wrong = error(names["model"], n, kind)
    assert wrong < 1e-12 if case == "64 samples" else wrong > 0.02


def test_the_plain_loop_trains_and_prints_the_f1_of_the_whole_epoch(capsys):
    sklearn = pytest.importorskip("sklearn.metrics")
    names = run("A plain loop", usual_names() | {"epochs": 8}, 0)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    predictions = names["logits"].argmax(1)
    f1 = sklearn.f1_score(Y, predictions, labels=range(C), average="macro", zero_division=0)
    assert float(rows[-1][3]) == pytest.approx(f1) and float(rows[-1][1]) < float(rows[0][1]) and len(rows) == 8
    of_batches = [metrics.f1_score(p, y, C) for p, y in zip(predictions.split(8), Y.split(8), strict=True)]
    assert abs(np.mean(of_batches) - f1) > 0.02


def amp_error(block, micro_batches=1):
    """Relative to full precision. The gradients are large: clipping matters, and the first steps overflow in fp16."""
    names, x = usual_names(), (10 * X).float()
    model, exact = names["model"].float(), make_model().float()
    parts = zip(x.chunk(micro_batches), Y.chunk(micro_batches), strict=True)
    names |= {"optimizer": torch.optim.SGD(model.parameters(), lr=0.5), "train_loader": [*parts] * 12}
    exec(block, names)
    scaler = names["scaler"] if "scaler" in names else names["state"].scaler
    skipped = round(np.log2(65536 / scaler.get_scale()))
    assert 0 < skipped < 10
    optimizer = torch.optim.SGD(exact.parameters(), lr=0.5)
    for _ in range(12 - skipped):
        optimizer.zero_grad()
        names["criterion"](exact(x), Y).backward()
        torch.nn.utils.clip_grad_norm_(exact.parameters(), 1.0)
        optimizer.step()
    change = flat(exact) - flat(make_model())
    return ((flat(model) - flat(exact)).norm() / change.norm()).item()


def test_amp_with_the_scaler_is_full_precision_up_to_rounding_and_clipping_before_unscale_is_not():
    block = code("Mixed precision (AMP)", 0)
    assert amp_error(block) < 0.01
    wrong = re.sub(r" +scaler\.unscale_.*\n", "", block)
    assert wrong != block and amp_error(wrong) > 0.1
    assert amp_error(code("Mixed precision (AMP)", 1), micro_batches=4) < 0.01


def test_the_losses_compute_in_float32_inside_autocast():
    logits = (X @ torch.randn(8, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).half() * 10
    with torch.autocast("cpu", torch.float16):
        loss = losses.focal_loss(logits, Y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), losses.focal_loss(logits.double(), Y), rtol=1e-5, atol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face Trainer
# ---------------------------------------------------------------------------------------------------------------------


def make_bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": 50, "max_position_embeddings": 8, "num_labels": C}
    config = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    return transformers.BertForSequenceClassification(config)


def trainer_names(folder, n, accum):
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(50, (6,), generator=generator), "labels": y} for y in Y[:n]]
    options = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
    options |= {"num_train_epochs": 1, "logging_steps": 1, "report_to": "none", "save_strategy": "no", "seed": 0}
    args = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=32 // accum,
        gradient_accumulation_steps=accum,
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    names = {
        "torch": torch,
        "device": CPU,
        "Trainer": transformers.Trainer,
        "model": make_bert(),
        "training_args": args,
    }
    return names | {"train_set": data, "val_set": data[:40], "train_counts": [50, 20, 10, 5, 2]}


class WithoutKwargs(torch.nn.Module):
    """A model whose forward does not take **kwargs."""

    def __init__(self):
        super().__init__()
        self.net = make_bert()

    def forward(self, input_ids, labels=None):
        return self.net(input_ids)


def overriding_trainer(folder, n, kind, accum, is_scaled=None, make=make_bert):
    """The Trainer of many notes, after one epoch. is_scaled: its attribute loss_is_scaled_for_ga, None by default."""
    transformers, criterion = pytest.importorskip("transformers"), CRITERIA[kind]()

    class Overriding(transformers.Trainer):
        loss_is_scaled_for_ga = is_scaled

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = criterion(outputs.logits, labels)
            return (loss, outputs) if return_outputs else loss

    names = trainer_names(folder, n, accum)
    trainer = Overriding(model=make(), args=names["training_args"], train_dataset=names["train_set"])
    trainer.train()
    return trainer


@functools.cache
def big_trainer(n, kind):
    """With accum 1 the overriding Trainer is right: one mean per update."""
    with tempfile.TemporaryDirectory() as folder:
        return overriding_trainer(folder, n, kind, accum=1)


def bert_error(model, n, kind):
    big, start = flat(big_trainer(n, kind).model), flat(make_bert())
    return ((flat(model) - big).norm() / (big - start).norm()).item()


def copied_trainer(folder, n, kind, accum=4):
    names = run("Hugging Face Trainer", trainer_names(folder, n, accum), 0)
    if kind == "weighted":
        run("Hugging Face Trainer", names, 1)
        names["criterion"] = CRITERIA[kind](reduction="sum")
        options = {"args": names["training_args"], "train_dataset": names["train_set"]}
        names["trainer"] = names["WeightedTrainer"](
            model=make_bert(), compute_loss_func=names["compute_loss"], **options
        )
        names["trainer"].train()
    return names["trainer"]


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


@pytest.mark.parametrize("case", ["64 samples", "59 samples", "40 samples", "weights"])
def test_compute_loss_func_in_the_trainer_equals_the_big_batch(case, tmp_path):
    n, kind = CASES[case]
    trainer, big = copied_trainer(tmp_path, n, kind), big_trainer(n, kind)
    assert bert_error(trainer.model, n, kind) < 4e-5
    assert logged(trainer, "loss") == pytest.approx(logged(big, "loss"), rel=1e-3)
    assert logged(trainer, "grad_norm") == pytest.approx(logged(big, "grad_norm"), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_overriding_compute_loss_makes_gradients_and_logged_losses_4_times_too_large(case, tmp_path):
    n, kind = CASES[case]
    trainer, big = overriding_trainer(tmp_path, n, kind, accum=4), big_trainer(n, kind)
    assert bert_error(trainer.model, n, kind) > 1
    if kind == "plain":
        assert logged(trainer, "grad_norm")[0] == pytest.approx(4 * logged(big, "grad_norm")[0], rel=1e-4)
        assert logged(trainer, "loss")[0] == pytest.approx(4 * logged(big, "loss")[0], rel=1e-3)
    without = bert_error(overriding_trainer(tmp_path, n, kind, accum=4, make=WithoutKwargs).model, n, kind)
    # Trainer divides the loss of such a model by the number of micro-batches of the window
    assert without < 4e-5 if case in ("64 samples", "40 samples") else 0.02 < without < 1
    if hasattr(pytest.importorskip("transformers").Trainer, "loss_is_scaled_for_ga"):
        divided = bert_error(overriding_trainer(tmp_path, n, kind, accum=4, is_scaled=False).model, n, kind)
        assert divided == pytest.approx(without, abs=1e-5)


def test_with_class_weights_the_number_of_labels_is_an_exact_divisor_too_but_a_different_one(tmp_path):
    def trained(accum):
        names = run("Hugging Face Trainer", trainer_names(tmp_path, 59, accum), 0)
        names["criterion"] = CRITERIA["weighted"](reduction="sum")  # compute_loss finds it by its name
        model = make_bert()
        options = {"args": names["training_args"], "train_dataset": names["train_set"]}
        names["Trainer"](model=model, compute_loss_func=names["compute_loss"], **options).train()
        return model

    several, big, start = flat(trained(4)), flat(trained(1)), flat(make_bert())
    assert ((several - big).norm() / (big - start).norm()).item() < 4e-5
    assert bert_error(trained(4), 59, "weighted") > 0.1


def test_the_trainer_evaluates_the_whole_set(tmp_path):
    sklearn = pytest.importorskip("sklearn.metrics")
    trainer = copied_trainer(tmp_path, 64, "plain")
    scores, logits = trainer.evaluate(), torch.from_numpy(trainer.predict(trainer.eval_dataset).predictions)
    f1 = sklearn.f1_score(Y[:40], logits.argmax(1), labels=range(C), average="macro", zero_division=0)
    assert scores["eval_f1"] == pytest.approx(f1)
    assert scores["eval_loss"] == pytest.approx(losses.focal_loss(logits, Y[:40]).item(), rel=1e-5)


def test_the_signature_of_older_notes_is_a_type_error(tmp_path):
    names = trainer_names(tmp_path, 64, 4)

    class Old(names["Trainer"]):
        def compute_loss(self, model, inputs, return_outputs=False):
            raise AssertionError("never called")

    with pytest.raises(TypeError, match="num_items_in_batch"):
        Old(model=names["model"], args=names["training_args"], train_dataset=names["train_set"]).train()
    state = pytest.importorskip("accelerate").state.GradientState
    assert not state().sync_gradients  # it failed within a window: all later optimizers of the process would not step
    state._reset_state()


# ---------------------------------------------------------------------------------------------------------------------
# Lightning and accelerate
# ---------------------------------------------------------------------------------------------------------------------


def lightning_trainer(accum=1):
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(accelerator="cpu", max_epochs=1, accumulate_grad_batches=accum, **off)


def lightning_model(n, kind):
    pytest.importorskip("lightning")
    names = run("Lightning", usual_names())
    module = names["Classifier"](make_model(), CRITERIA[kind](), C)
    trainer = lightning_trainer()
    trainer.fit(module, make_loader(n, 32), make_loader(n))
    return module.net, trainer.callback_metrics


def accumulating_lightning_model(n, kind):
    lightning = pytest.importorskip("lightning")

    class Usual(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.criterion = make_model(), CRITERIA[kind]()

        def training_step(self, batch, batch_idx):
            return self.criterion(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    module = Usual()
    lightning_trainer(accum=4).fit(module, make_loader(n))
    return module.net


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_windows_in_lightning_equal_the_big_batch_and_accumulate_grad_batches_does_only_for_plain_means(case):
    model, scores = lightning_model(*CASES[case])
    assert error(model, *CASES[case]) < 1e-12
    n = CASES[case][0]
    assert scores["val_f1"].item() == pytest.approx(metrics.f1_score(model(X[:n]), Y[:n], C))
    wrong = error(accumulating_lightning_model(*CASES[case]), *CASES[case])
    assert wrong < 1e-12 if case == "64 samples" else wrong > 0.02


def accelerate_model(n, kind):
    names = usual_names(n, kind)
    raw = names["model"]
    run("accelerate", names)
    return raw


def accumulating_accelerate_model(n, kind):
    names = usual_names(n, kind)
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, gradient_accumulation_steps=4)
    prepared = accelerator.prepare(names["model"], names["optimizer"], names["train_loader"])
    model, optimizer, loader = prepared
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(names["criterion"](model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    return names["model"]


@pytest.mark.parametrize("case", CASES)
def test_shares_in_accelerate_equal_the_big_batch_and_accumulate_does_only_for_plain_means(case):
    pytest.importorskip("accelerate")
    shares = error(accelerate_model(*CASES[case]), *CASES[case])
    assert shares < 1e-6 if case != "F1" else shares > 0.02  # a ratio of sums cannot be added up
    wrong = error(accumulating_accelerate_model(*CASES[case]), *CASES[case])
    assert wrong < 1e-12 if case == "64 samples" else wrong > 0.02


SCRIPT = """
import os, sys
sys.path[:0] = {paths!r}
import torch
import test_copy
for i, block in enumerate({blocks!r}):
    names = test_copy.usual_names(64, "weighted") | {{"accum": 4}}
    model = names["model"]
    exec(block, names)
    torch.save(model.state_dict(), f"{{i}}-{{os.environ['RANK']}}.pt")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
os._exit(0)  # an end by Python itself has once aborted, probably in the threads of gloo that DDP still holds
"""


def errors_of_two_processes(folder, *blocks):
    """Runs each block in two processes, as torchrun starts them. Returns the largest error of the two, per block."""
    paths = [str(ROOT), str(ROOT / "tests"), *sys.path]
    (folder / "script.py").write_text(SCRIPT.format(paths=paths, blocks=blocks))
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    each = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    errors = subprocess.PIPE
    processes = [subprocess.Popen([sys.executable, "script.py"], cwd=folder, env=e, stderr=errors) for e in each]
    for process in processes:
        _, text = process.communicate(timeout=300)
        assert process.returncode == 0, text.decode()
    model, found = make_model(), []
    for i in range(len(blocks)):
        states = [torch.load(folder / f"{i}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        found.append(max(error(model, 64, "weighted") for state in states if model.load_state_dict(state)))
    return found


def test_shares_in_accelerate_equal_the_big_batch_with_two_processes_if_the_total_is_that_of_both(tmp_path):
    pytest.importorskip("accelerate")
    block = code("accelerate").replace("loader, 4", "loader, 2")
    own_total = re.sub(r" +total = accelerator\.reduce.*\n", "", block)
    exact, wrong = errors_of_two_processes(tmp_path, block, own_total)
    assert exact < 1e-6 and wrong > 0.02


def test_ranks_equal_one_process_and_the_big_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("ranks.py", usual_names(59, "weighted") | {"accum": 4})
    alone = make_model()
    alone.load_state_dict(torch.load("model.pt", weights_only=True))
    assert error(alone, 59, "weighted") < 1e-12 < error(alone, 64, "weighted")
    assert errors_of_two_processes(tmp_path, code("ranks.py"))[0] < 1e-12


# ---------------------------------------------------------------------------------------------------------------------
# Segmentation and tokens
# ---------------------------------------------------------------------------------------------------------------------


def images_of_labels(N=6, H=4, W=3, ignored=0.3):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(C, (N, H, W), generator=generator)
    targets[torch.rand(N, H, W, generator=generator) < ignored] = -100
    return torch.randn(N, 7, H, W, generator=generator, dtype=torch.float64), targets


def reference(kind, logits, targets):
    """In Python numbers, pixel by pixel."""
    total, divisor, tp, predicted, support = 0.0, 0.0, [0.0] * C, [0.0] * C, [0.0] * C
    for row, t in zip(logits.permute(0, 2, 3, 1).reshape(-1, C).tolist(), targets.flatten().tolist(), strict=True):
        if t != -100:
            p = np.exp(np.array(row) - max(row))
            p /= p.sum()
            w = WEIGHT[t].item() if kind == "weighted" else 1.0
            total, divisor = total - w * (1 - p[t]) ** 2 * np.log(p[t]), divisor + w
            tp[t], support[t], predicted = tp[t] + p[t], support[t] + 1, predicted + p
    return (
        1 - np.mean([2 * a / (b + c) for a, b, c in zip(tp, predicted, support, strict=True)])
        if kind == "f1"
        else total / divisor
    )


@pytest.mark.parametrize("kind", CRITERIA)
def test_selected_pixels_give_the_loss_and_scores_of_the_pixels_that_count(kind):
    x, targets = images_of_labels()
    logits = x[:, :C]
    names = usual_names(kind=kind) | {"logits": logits, "targets": targets, "matrix": metrics.ConfusionMatrix(C)}
    run("Segmentation and tokens", names, 0)
    expected = reference(kind, logits, targets)
    assert names["loss"].item() == pytest.approx(expected, rel=1e-12)
    right = sum((logits.argmax(1) == targets).flatten().tolist())
    assert names["matrix"].accuracy() == pytest.approx(right / int((targets != -100).sum()))
    without_movedim = logits.reshape(-1, C)[targets.flatten() != -100]  # runs, and mixes positions with classes
    assert abs(names["criterion"](without_movedim, targets[targets != -100]).item() - expected) > 1e-3


@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (2, 2, 3)])
def test_selected_positions_equal_torchs_ignore_index_in_value_and_gradient(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, C, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(C, (9, *shape), generator=generator)
    targets[0] = -100
    names = usual_names() | {"logits": logits, "targets": targets, "matrix": metrics.ConfusionMatrix(C)}
    names["criterion"] = losses.CrossEntropyLoss(smoothing=0.1, weight=WEIGHT)
    run("Segmentation and tokens", names, 0)
    expected = F.cross_entropy(logits, targets, WEIGHT, label_smoothing=0.1, ignore_index=-100)
    torch.testing.assert_close(names["loss"], expected, rtol=1e-12, atol=0)
    (one,), (other,) = (torch.autograd.grad(loss, logits) for loss in (names["loss"], expected))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    last = logits.movedim(1, -1)  # tokens: the classes are last
    torch.testing.assert_close(names["criterion"](last[names["keep"]], targets[names["keep"]]), expected)


@pytest.mark.parametrize("kind", CRITERIA)
def test_dense_in_loop_py_equals_the_big_batch_also_if_a_micro_batch_has_no_label(kind):
    import loop

    def names_of(batch_size):
        x, targets = images_of_labels()
        targets[2:4] = -100  # the whole second micro-batch
        torch.manual_seed(1)
        model = torch.nn.Conv2d(7, C, 1).double()
        loader = DataLoader(TensorDataset(x, targets), batch_size=batch_size)
        state = loop.State(model, torch.optim.SGD(model.parameters(), lr=0.5))
        own = {"model": model, "state": state, "train_loader": loader, "train_epoch": loop.train_epoch}
        return usual_names(kind=kind) | own

    start = flat(names_of(2)["model"])
    several, big = (flat(run("Segmentation and tokens", names_of(n), 1)["model"]) for n in (2, 6))
    assert ((several - big).norm() / (big - start).norm()).item() < 1e-12
    x, targets = next(iter(names_of(6)["train_loader"]))
    model = names_of(2)["model"]
    optimizer, keep = torch.optim.SGD(model.parameters(), lr=0.5), targets != -100
    CRITERIA[kind]()(model(x).permute(0, 2, 3, 1)[keep], targets[keep]).backward()
    optimizer.step()
    torch.testing.assert_close(flat(model), big, rtol=1e-12, atol=1e-14)
    assert (flat(model) - start).norm() > 1e-3
    empty = names_of(2)
    empty["train_loader"] = [(x[2:4], targets[2:4])]
    with pytest.raises((ZeroDivisionError, loop.NonFinite)):
        run("Segmentation and tokens", empty, 1)
    assert flat(empty["model"]).equal(start)


# ---------------------------------------------------------------------------------------------------------------------
# File by file
# ---------------------------------------------------------------------------------------------------------------------


def test_losses():
    logits = torch.randn(32, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = run("losses.py", usual_names() | {"logits": logits, "targets": Y[:32]})
    w = (1 - 0.999) / (1 - 0.999 ** np.array([50, 20, 10, 5, 2]))
    p, w = logits.softmax(1).numpy()[np.arange(32), Y[:32]], w[Y[:32]]
    assert names["loss"].item() == pytest.approx((w * (1 - p) ** 2 * -np.log(p)).sum() / w.sum(), rel=1e-6)
    prior = torch.tensor([50, 20, 10, 5, 2]).double().log()
    assert names["adjusted"].item() == pytest.approx(F.cross_entropy(logits + prior, Y[:32]).item(), rel=1e-6)
    assert abs(names["adjusted"].item() - F.cross_entropy(logits, Y[:32]).item()) > 0.01


def test_metrics(capsys):
    sklearn = pytest.importorskip("sklearn.metrics")
    names = run("metrics.py", usual_names())
    predictions = names["model"](X).argmax(1)
    f1 = sklearn.f1_score(Y, predictions, labels=range(C), average="macro", zero_division=0)
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(f1)
    assert abs(sklearn.f1_score(Y, predictions, average="micro") - f1) > 1e-3


def write_photos(folder, people=12, each=3):
    """photos/train.csv with groups, and different pictures of two classes."""
    (folder / "photos").mkdir()
    rows = []
    for i in range(people * each):
        person = i // each
        noise = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((48, 48), Image.Resampling.NEAREST).save(folder / "photos" / f"p{person}_{i}.png")
        rows.append((f"p{person}_{i}.png", ("cat", "dog")[person % 2], f"p{person}"))
    with open(folder / "photos" / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "group"), *rows])
    return [str(folder / "photos" / name) for name, _, _ in rows], [group for _, _, group in rows]


def test_data(tmp_path, monkeypatch):
    paths, groups = write_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = run("data.py", {"paths": paths, "targets": [i // 3 % 2 for i in range(36)], "groups": groups})
    assert names["own_fold_of"].tolist() == names["fold_of"].tolist()
    groups, train, val = np.array(groups), names["train"], names["val"]
    assert len(train) == 27 and not set(groups[train]) & set(groups[val])
    assert all(len(set(names["fold_of"][groups == group])) == 1 for group in groups)
    mixed = np.random.default_rng(0).permutation(36)
    assert set(groups[mixed[:27]]) & set(groups[mixed[27:]])  # a random split by image is not enough
    path, target = names["train_set"][0]
    assert Path(path).exists() and names["table"].classes[target] in ("cat", "dog")


def test_pixels(tmp_path, monkeypatch):
    paths, _ = write_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    targets, seen = np.arange(36) % 2, []
    own = {"paths": paths, "targets": targets, "rows": np.arange(30), "train_step": lambda *batch: seen.append(batch)}
    names = run("pixels.py", usual_names() | own | {"epochs": 2})
    assert len(seen) == 16 and sum(len(y) for _, y in seen) == 60
    x, y = next(iter(names["loader"]))
    expected = np.asarray(Image.open(paths[0]).convert("RGB").resize((64, 64)))
    assert x.shape == (4, 3, 64, 64) and x.dtype == torch.uint8 and y.tolist() == targets[:4].tolist()
    assert np.abs(x[0].permute(1, 2, 0).numpy().astype(int) - expected).mean() < 30
    first, second = (torch.cat([y for _, y in part]) for part in (seen[:8], seen[8:]))
    assert not first.equal(second)  # a new order in each epoch


def test_augment():
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = {"torch": torch, "images": images, "val_images": images, "index": torch.arange(6), "epoch": 0}
    x = run("augment.py", dict(names))["x"]
    part = run("augment.py", names | {"images": images[2:4], "index": torch.arange(2, 4)})["x"]
    torch.testing.assert_close(part, x[2:4], rtol=1e-5, atol=1e-5)  # the draws do not depend on the batch
    assert not torch.allclose(run("augment.py", names | {"epoch": 1})["x"], x, atol=0.1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    val_x = run("augment.py", dict(names))["val_x"]
    torch.testing.assert_close(val_x, (images / 255 - mean) / std, rtol=1e-4, atol=1e-4, check_stride=False)


def test_models():
    def train_step(model, images, targets):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1

    loader = [(torch.zeros(2, 3, 32, 32), torch.zeros(2).long())] * 3
    names = run("models.py", {"torch": torch, "train_loader": loader, "train_step": train_step})
    assert names["model"](torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    lag = next(names["model"].parameters()) - next(names["ema"].model.parameters())
    expected = 0.0  # the EMA is behind by d * (lag + 1) after each step of 1, d = (1 + t) / (10 + t)
    for t in range(3):
        expected = (1 + t) / (10 + t) * (expected + 1)
    torch.testing.assert_close(lag, torch.full_like(lag, expected), rtol=1e-4, atol=1e-4)
    assert names["fresh"] == ["linear.weight", "linear.bias"]


def test_optim():
    rates = []

    def train_step(model, images, targets):
        rates.append(names["optimizer"].param_groups[0]["lr"])

    names = usual_names() | {"epochs": 4, "train_step": train_step}
    run("optim.py", names)
    warmup, rest = rates[:8], rates[8:]
    assert len(rates) == 32 and warmup == sorted(warmup) and rest == sorted(rest, reverse=True)
    assert max(rates) == pytest.approx(1e-3) and rates[20] == pytest.approx(1e-3 * (1 + np.cos(np.pi / 2)) / 2)
    (matrix, bias), decays = names["model"].parameters(), {}
    for group in names["optimizer"].param_groups:
        decays |= {id(parameter): group["weight_decay"] for parameter in group["params"]}
    assert decays == {id(matrix): 1e-2, id(bias): 0}


def test_leaks(tmp_path, capsys):
    paths, groups = write_photos(tmp_path)
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    brighter = pixels.copy()
    brighter[0] = (pixels[30] * 0.8).astype(np.uint8)
    own = {"paths": paths, "targets": np.arange(36) // 3 % 2, "classes": ["cat", "dog"]}
    own |= {"train": np.arange(27), "val": np.arange(27, 36)}
    names = run("leaks.py", own | {"pixels": brighter})
    assert capsys.readouterr().out.split() == ["alike", paths[30], paths[0]]
    assert names["groups"] == groups
    run("leaks.py", own | {"pixels": pixels})
    assert capsys.readouterr().out == ""


def test_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = usual_names()
    before = copy.deepcopy(names["model"])
    names = run("checkpoint.py", names)
    assert names["state"]["epoch"] == 3 and flat(names["model"]).equal(flat(before))
    run("checkpoint.py", names)  # now there is a previous file
    content = Path("last.pt").read_bytes()
    Path("last.pt").write_bytes(content[: len(content) // 2])
    importlib.import_module("checkpoint").load("last.pt")
    assert "last.previous.pt is loaded instead" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows does not send SIGTERM to itself in this way")
def test_stopping(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
finished, saved = [], []
def train_step(step):
    if step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    finished.append(step)
save_checkpoint = saved.append
"""
    (tmp_path / "script.py").write_text(script + code("stopping.py") + "\nprint(finished, saved)\n")
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 1, 2] [2]", done.stderr  # the step of the signal is finished
    (tmp_path / "script.py").write_text(script + "for step in range(1000):\n    train_step(step)\nprint(finished)\n")
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert done.stdout == "" and done.returncode == -15


def test_sam():
    model = run("sam.py", usual_names(59, "weighted"))["model"]
    big, criterion = make_model(), CRITERIA["weighted"]()
    optimizer = torch.optim.SGD(big.parameters(), lr=0.5)
    for x, y in make_loader(59, 32):
        weights = [parameter.detach().clone() for parameter in big.parameters()]
        gradient = torch.autograd.grad(criterion(big(x), y), list(big.parameters()))
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        with torch.no_grad():
            for parameter, g in zip(big.parameters(), gradient, strict=True):
                parameter += 0.05 * g / norm
        optimizer.zero_grad()
        criterion(big(x), y).backward()
        with torch.no_grad():
            for parameter, weight in zip(big.parameters(), weights, strict=True):
                parameter.copy_(weight)
        optimizer.step()
    torch.testing.assert_close(flat(model), flat(big), rtol=1e-10, atol=1e-12)
    assert error(model, 59, "weighted") > 1e-3  # not plain SGD


def test_shares():
    def probs_of(counts, seed):
        """Probabilities of a classifier that was trained with the class shares of `trained`."""
        rng, trained = np.random.default_rng(seed), np.array([0.7, 0.2, 0.1])
        targets = np.repeat(np.arange(3), counts)
        x = np.eye(3)[targets] + 0.6 * rng.normal(size=(len(targets), 3))
        p = np.exp(x / 0.36) * trained
        return p / p.sum(1, keepdims=True), targets

    val_probs, val_targets = probs_of([1400, 400, 200], 0)
    test_probs, test_targets = probs_of([200, 200, 1600], 1)
    names = run("shares.py", {"val_probs": val_probs, "val_targets": val_targets, "test_probs": test_probs})
    assert np.abs(names["shares"] - [0.1, 0.1, 0.8]).max() < 0.04
    assert (names["predictions"] == test_targets).mean() > (test_probs.argmax(1) == test_targets).mean() + 0.05


def test_cam():
    conv, head = torch.nn.Conv2d(3, 2, 2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0], conv.weight[1, 1] = 0.25, 0.25
        head.weight.copy_(torch.eye(2))
    images = torch.zeros(2, 3, 16, 16)
    images[0, 0, :8, :8], images[1, 1, 8:, 8:] = 1, 1  # red top left, green bottom right
    maps = run("cam.py", {"model": model, "images": images})["maps"]
    assert maps.shape == (2, 16, 16) and maps.max() == 1
    top_left = maps[:, :8, :8].sum((1, 2)) / maps.sum((1, 2))
    assert top_left[0] > 0.8 and top_left[1] < 0.2


def test_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matrix = metrics.ConfusionMatrix(2).update([0, 1, 1], [0, 1, 0])
    run("page.py", {"epochs_done": [1, 2], "losses": [0.5, 0.25], "matrix": matrix, "classes": ["cat", "<dog>"]})
    text = Path("report.html").read_text(encoding="utf-8")
    assert "<svg" in text and "&lt;dog&gt;" in text and "<dog>" not in text and "<script" not in text


def test_loggers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("loggers.py", {})
    written = list(Path("runs").rglob("events.out.tfevents.*"))
    missing = "--tensorboard: No module named" in capsys.readouterr().err
    assert bool(written) != missing


def test_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run("demo.py", {})["folder"]
    assert len(list(folder.rglob("*mask*.*"))) >= 12 * 6 and (folder / "train" / "train.csv").exists()


def test_labels(tmp_path, monkeypatch):
    source = (ROOT / "labels.py").read_text(encoding="utf-8")
    banners = [match.start() for match in re.finditer(r"^# -{20,}$", source, re.M)]
    start = source.index("# Confident learning")
    end = [place for place in banners if place > start][1]  # the first one is the lower line of its own heading
    (tmp_path / "confident.py").write_text(code("labels.py", 0) + source[start:end], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 800)
    z = 4 * np.eye(4)[true] + rng.normal(size=(800, 4))
    probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    wrong = rng.permutation(800)[:60]
    targets = true.copy()
    targets[wrong] = (true[wrong] + 1) % 4
    names = run("labels.py", {"probs": probs, "targets": targets}, 1)
    found = set(names["suspects"].tolist())
    assert len(found & set(wrong.tolist())) > 40 and len(found) < 75
    assert names["expected"].high < len(found)
    right = run("labels.py", {"probs": probs, "targets": true}, 1)
    assert len(right["suspects"]) < 20


def print_table():
    rows = {
        "loop.py": (None, lambda *case: error(loop_model(*case), *case)),
        "accelerate, COPY.md": ("accelerate", lambda *case: error(accelerate_model(*case), *case)),
        "accelerate, accumulate": ("accelerate", lambda *case: error(accumulating_accelerate_model(*case), *case)),
        "Lightning, COPY.md": ("lightning", lambda *case: error(lightning_model(*case)[0], *case)),
        "Lightning, accumulate": ("lightning", lambda *case: error(accumulating_lightning_model(*case), *case)),
    }
    with tempfile.TemporaryDirectory() as folder:
        rows["Trainer, COPY.md"] = (
            "transformers",
            lambda *case: bert_error(copied_trainer(folder, *case).model, *case) if case[1] != "f1" else float("nan"),
        )
        rows["Trainer, overridden"] = (
            "transformers",
            lambda *case: bert_error(overriding_trainer(folder, *case, accum=4).model, *case),
        )
        lines = [f"{'':<26}" + "".join(f"{case:>14}" for case in CASES)]
        for name, (package, measure) in rows.items():
            try:
                version = importlib.import_module(package).__version__ if package else ""
                cells = [f"{measure(*case):>14.2g}" for case in CASES.values()]
                lines.append(f"{name:<26}" + "".join(cells) + f"  {package or ''} {version}")
            except ModuleNotFoundError:
                lines.append(f"{name:<26}{package} is not installed")
    print("\n".join(lines))


if __name__ == "__main__":
    print_table()
