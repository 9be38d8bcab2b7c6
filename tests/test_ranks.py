"""ranks.py: several processes make the same updates as one, to rounding, and all of them have the same state."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import loop
import losses
import optim
import ranks
import sam

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (14, 8, 4, 3)
CRITERIA = {
    "ce": {},
    "weighted ce": {"name": "ce", "weight": torch.tensor([0.2, 0.7, 1.5, 3.0]).double()},
    "focal": {},
    "f1": {},
    "ce+f1": {},
    "logit_adjustment": {},
}


def network(norm):
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6, momentum=momentum) if norm else nn.Identity() for momentum in (0.3, None)]
    body = [nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(), norms[1]]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)).double()


class Branch(nn.Module):
    """Only some micro-batches use its last layer, and so in some windows only some ranks."""

    def __init__(self):
        super().__init__()
        self.body, self.last = network(False), nn.Linear(4, 4).double()

    def forward(self, x):
        logits = self.body(x)
        return self.last(logits) if x.mean() > 0 else logits


def micro_batches():
    """29 samples in micro-batches of 4: windows of 3, 3 and 2, so that the third of 3 ranks has none in the last."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(29, 3, 6, 6, generator=generator).double()
    y = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))[torch.randperm(29, generator=generator)]
    return list(zip(x.split(4), y.split(4), strict=True))


def averaging(group):
    """What is usual: each rank's own mean, and the mean of the gradients over the ranks."""

    def backward(model, forward, criterion, window, scaler):
        window = [batch for batch in window if len(batch[-1])]
        result = torch.zeros(()), torch.zeros(0, 4).double(), torch.zeros(0).long()
        if window:
            result = loop.backward_window(model, forward, criterion, window, scaler)
        for parameter in model.parameters():
            parameter.grad = group.sum(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            parameter.grad /= group.size
        return result

    return backward


def train(group, name, norm=False, wrap=lambda backward: backward, average=False, frozen=False, branch=False):
    """The state dict after two epochs, the loss of each window, and the means of the second epoch."""
    how = dict(CRITERIA[name])
    criterion = losses.build_loss(how.pop("name", name), COUNTS, **how).double()
    model = Branch() if branch else network(norm)
    if frozen:
        model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    if norm:  # fused, and a memory layout that the gradients must have too
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-2, fused=True)
    state = loop.State(model, optimizer)
    state.schedule = optim.build_schedule("cosine", state.optimizer, 2, 3)
    batches, found = micro_batches(), []
    nothing = batches[0][0][:0], batches[0][1][:0]
    mine = [nothing if i is None else batches[i] for i in group.share(len(batches), 3)]
    backward = averaging(group) if average else wrap(group.backward(loop.backward_window, loop.weight_of))
    for _ in range(2):
        trained = loop.train_epoch(
            state,
            mine,
            criterion,
            accum=group.accum(3),
            clip=1.0,
            after_window=lambda window: found.append(window["loss"]),
            backward=backward,
        )
    return {"weights": model.state_dict(), "losses": found, "train_loss": trained["train_loss"]}


def everything(group):
    results = {name: train(group, name) for name in CRITERIA}
    results |= {f"{name}, norm": train(group, name, norm=True) for name in ("weighted ce", "ce+f1")}
    results["sam"] = train(group, "weighted ce", norm=True, wrap=lambda backward: sam.SAM(backward, 0.3))
    results["frozen"] = train(group, "ce", frozen=True)
    results["branch"] = train(group, "weighted ce", branch=True)
    results["averaged"] = train(group, "weighted ce", average=True)
    return results


def free_port():
    """A free port that the system gives to no other connection until it is used: below the range of those ports."""
    for port in random.SystemRandom().sample(range(10_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port was found")


def launch(size, *argv, cwd=None):
    """Starts `size` processes as torchrun does. Returns them."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    found = []
    for rank in range(size):
        env = (
            os.environ
            | shared
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        )
        command = [sys.executable, *map(str, argv)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        found.append(subprocess.Popen(command, text=True, env=env, cwd=cwd, **pipes))
    return found


@pytest.fixture(scope="module", params=[2, 3])
def trained(request, tmp_path_factory):
    """The results of one process, and those of each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    for process in launch(request.param, __file__, folder, cwd=ROOT):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    each = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]
    return everything(ranks.Ranks()), each


def distance(one, other):
    pairs = [(one[key], other[key]) for key in one]
    return max(((a - b).abs().max() / (b.abs().max() + 1e-12)).item() for a, b in pairs)


def test_every_loss_has_the_updates_of_one_process_and_all_ranks_agree(trained):
    one, each = trained
    for name, expected in one.items():
        if name == "averaged":
            continue
        for found in each:
            assert distance(found[name]["weights"], expected["weights"]) < 1e-12, name
            assert found[name]["losses"] == pytest.approx(expected["losses"], rel=1e-12), name
            assert all(torch.equal(a, b) for a, b in zip(*map(weights_of, (found[name], each[0][name])), strict=True))


def weights_of(result):
    return list(result["weights"].values())


def test_the_mean_of_the_gradients_over_the_ranks_is_another_run(trained):
    one, each = trained
    assert distance(each[0]["averaged"]["weights"], one["weighted ce"]["weights"]) > 1e-3


def test_one_process_alone_is_the_bare_loop():
    group = ranks.Ranks()
    assert group.backward(loop.backward_window, None) is loop.backward_window
    rows = torch.arange(3)
    assert group.gather(rows) is rows and group.sum(rows) is rows and group.agree("x") == "x"
    assert group.share(8, 3) == list(range(8)) and group.accum(3) == 3 and list(group.part(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size, batches, accum", [(2, 8, 3), (3, 8, 3), (3, 7, 4), (4, 9, 4), (2, 1, 2), (3, 10, 5)])
def test_each_micro_batch_has_one_rank_and_windows_stay_in_step(size, batches, accum):
    each = [ranks.Ranks(rank, size) for rank in range(size)]
    shared = [group.share(batches, accum) for group in each]
    assert sorted(i for mine in shared for i in mine if i is not None) == list(range(batches))
    for group, mine in zip(each, shared, strict=True):
        windows = [mine[i : i + group.accum(accum)] for i in range(0, len(mine), group.accum(accum))]
        assert len(windows) == -(-batches // accum)
        for number, window in enumerate(windows):
            assert all(i is None or i // accum == number for i in window)
        assert group.share(batches, accum, start=accum) == [i for w in windows[1:] for i in w] or len(windows) == 1


def test_more_processes_than_micro_batches_are_refused():
    with pytest.raises(ValueError, match="3 processes need at least 3 micro-batches per window, got 2"):
        ranks.Ranks(0, 3).accum(2)


def test_ranks_know_whether_they_have_the_same_text(trained):
    assert all(found["same"] == [True, False] for found in trained[1])
    assert ranks.Ranks().same("alone")


@pytest.mark.parametrize("backend, device", [("gloo", "cpu"), pytest.param("nccl", "cuda:0", marks=pytest.mark.gpu(1))])
def test_a_backend_takes_all_types_of_tensors_that_are_sent(backend, device):
    """The collectives in a group of one process. Size 2 is pretended, because one process alone would not use them."""
    where = f"tcp://127.0.0.1:{free_port()}"
    torch.distributed.init_process_group(backend, init_method=where, world_size=1, rank=0)
    try:
        group = ranks.Ranks(0, 2, 0, device)
        for dtype in (torch.float32, torch.float64, torch.int64):
            rows = torch.arange(6, dtype=dtype).view(3, 2)
            for found in (group.sum(rows), group.gather(rows, [3]), group.gather(rows[:0], [0])):
                assert found.dtype == dtype and found.device == group.device
            assert torch.equal(group.sum(rows).cpu(), rows) and torch.equal(group.gather(rows, [3]).cpu(), rows)
        assert group.table([0.5, 2**40 + 1]) == [[0.5, 2**40 + 1], [0, 0]]
        assert group.agree({"folder": "runs/a"}) == {"folder": "runs/a"} and group.any(3) and not group.any(0)
    finally:
        torch.distributed.destroy_process_group()


def test_one_process_of_each_machine_is_first():
    """Threads instead of processes: rank 2 is the first of a second machine."""
    meeting, order = threading.Barrier(4), []

    class Group(ranks.Ranks):
        def any(self, flag):
            meeting.wait(30)

    def work(rank):
        with Group(rank, 4, local_rank=rank % 2).one_first():
            order.append(rank)
            time.sleep(0.2)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads[::-1]:
        thread.start()
    for thread in threads:
        thread.join()
    assert [rank % 2 for rank in order] == [0, 0, 1, 1]


if __name__ == "__main__":
    with ranks.Ranks.of_torchrun() as group:
        same = [group.same(text) for text in ("one", f"rank {group.rank // (group.size - 1)}")]  # the last differs
        torch.save(everything(group) | {"same": same}, Path(sys.argv[1]) / f"{group.rank}.pt")
