"""`warm_server.py ADDRESS`: imports everything once, and then forks a copy for every client that comes."""

import array
import contextlib
import gc
import importlib
import io
import marshal
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import types
import warnings
from pathlib import Path

# What the command line, its models and the training scripts of the tests import; not onnxruntime, which starts a thread
# that a copy would not have.
PRELOADED = [
    *("numpy", "torch", "torch.export", "torch.distributed", "torch.distributed.run", "torch.nn.parallel"),
    *("torch.onnx._internal.exporter._core", "torch.distributed.fsdp", "torch._dynamo"),
    *("onnx", "onnx.checker", "onnx_ir", "onnxscript", "safetensors.torch", "rich.progress", "jinja2"),
    *("matplotlib.figure", "jumpout_export.cli.app", "jumpout_export.cli.work", "jumpout_export.cli.results"),
    *("jumpout_export.demo", "jumpout_export.verify.inspect", "jumpout_export.fold.file.fold_file"),
    *("jumpout_export.batchnorm.sets", "jumpout_export.verify.verify", "jumpout_export.loading"),
]


class Job:
    """A client's request, and in the copy the process that it becomes."""

    def __init__(self, packet: bytes, handles: list[int]) -> None:
        memory, *streams = handles
        os.lseek(memory, 0, os.SEEK_SET)
        content = os.read(memory, os.fstat(memory).st_size)
        os.close(memory)
        self.arguments, self.folder, self.environment, numbers, self.ignored, self.umask = marshal.loads(content)
        self.streams = dict(zip(numbers, streams, strict=True))

    def become(self) -> None:
        """Gives this process the client's streams, folder, environment and signals."""
        for number in (0, 1, 2):
            if number in self.streams:
                os.dup2(self.streams[number], number)
            else:
                os.close(number)
        for handle in self.streams.values():
            os.close(handle)
        os.chdir(self.folder)
        os.umask(self.umask)
        os.environ.clear()
        os.environ.update(self.environment)
        for number in self.ignored:
            signal.signal(number, signal.SIG_IGN)
        if signal.SIGINT not in self.ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python starts
        sys.stdin = sys.__stdin__ = self._stream(0, "r", "strict")
        sys.stdout = sys.__stdout__ = self._stream(1, "w", "strict")
        sys.stderr = sys.__stderr__ = self._stream(2, "w", "backslashreplace")
        sys.path[:0] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        import numpy as np

        np.random.seed()  # every process has its own; the random module takes care of itself

    def _stream(self, number: int, mode: str, errors: str) -> io.TextIOWrapper | None:
        if number not in self.streams:
            return None
        at_once = mode == "w" and bool(os.environ.get("PYTHONUNBUFFERED"))
        binary = io.open(number, f"{mode}b", 0 if at_once else -1, closefd=False)  # noqa: SIM115, UP020 as Python has it
        lines = number == 2 or binary.isatty()
        return io.TextIOWrapper(binary, "utf-8", errors, line_buffering=lines, write_through=at_once)

    def run(self) -> None:
        """Does what `python` with these arguments does."""
        arguments = [*self.arguments]
        while arguments[0] == "-W":
            warnings._setoption(arguments[1])
            del arguments[:2]
        kind = arguments.pop(0)
        if kind == "-c":
            code = arguments.pop(0)
            sys.argv = ["-c", *arguments]
            sys.path.insert(0, "")
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), vars(module))
        elif kind == "-m":
            sys.argv = [*arguments]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [kind, *arguments]
            sys.path.insert(0, os.path.dirname(os.path.abspath(kind)))
            runpy.run_path(kind, run_name="__main__")


def attend(connection: socket.socket) -> Job | None:
    """Forks the copy of one client and stays until it has ended; in the copy, returns its job."""
    packet, ancillary, _, _ = connection.recvmsg(16, socket.CMSG_SPACE(16))
    if not packet:
        os._exit(0)
    handles = array.array("i")
    handles.frombytes(ancillary[0][2])
    job = Job(packet, list(handles))
    copy = os.fork()
    if copy == 0:
        return job
    for handle in job.streams.values():
        os.close(handle)
    ended = os.pidfd_open(copy)
    while ended not in select.select([connection, ended], [], [])[0]:
        number = connection.recv(1)
        signal.pidfd_send_signal(ended, number[0] if number else signal.SIGKILL)
        if not number:  # the client was killed
            break
    _, status = os.waitpid(copy, 0)  # also counts its time as ours
    with contextlib.suppress(OSError):
        connection.send(status.to_bytes(4, "little"))
    os._exit(0)


def export_once() -> None:
    """Lets torch read its tables of operators, which the first export does; what is random stays as it was."""
    import torch
    from torch import nn

    from jumpout_export.export.convert import convert
    from jumpout_export.model.batches import Batch

    state = torch.get_rng_state()
    net, samples = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval(), torch.ones(2, 1, 4, 4)
    # Older converters say on stdout what they did.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        convert(net, Batch((samples,), {}), Path(folder, "m.onnx"))
    torch.set_rng_state(state)


def main() -> Job:
    """Serves until standard input ends; returns in the copies."""
    for name in PRELOADED:
        importlib.import_module(name)
    export_once()
    assert len(os.listdir("/proc/self/task")) == 1, "what was imported has started a thread"
    gc.freeze()  # what is here is not looked through again, in no copy and not at its end
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[1])
    listener.listen()
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        with contextlib.suppress(ChildProcessError):  # there is none
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if 0 in ready:
            os.unlink(sys.argv[1])
            os.rmdir(os.path.dirname(sys.argv[1]))
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            job = attend(connection)
            connection.close()
            return job
        connection.close()


if __name__ == "__main__":
    job = main()
    job.become()
    job.run()
