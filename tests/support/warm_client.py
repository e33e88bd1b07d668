"""`python -I -S warm_client.py ADDRESS ...`: what is small of a process whose work a copy of the server does.

Nothing but the standard library's smallest modules: this is started a hundred times.
"""

import _socket
import array
import marshal
import os
import signal
import sys

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    streams = [number for number in (0, 1, 2) if _is_open(number)]
    ignored = [int(number) for number in _FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    connection.connect(sys.argv[1])
    request = marshal.dumps((sys.argv[2:], os.getcwd(), dict(os.environ), streams, ignored, os.umask(0)))
    memory = os.memfd_create("request")  # the environment may be longer than a packet
    os.write(memory, request)
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [memory, *streams]))]
    connection.sendmsg([b"run"], rights)
    for number in _FORWARDED:
        if number not in ignored:
            signal.signal(number, lambda number, _: connection.send(bytes([number])))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    answer = connection.recv(16)
    _end_as(int.from_bytes(answer, "little") if answer else 1 << 8)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _end_as(status: int) -> None:
    """Ends this process as the copy ended, its wait status given."""
    if not os.WIFSIGNALED(status):
        os._exit(os.WEXITSTATUS(status))
    import resource

    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pause()


main()
