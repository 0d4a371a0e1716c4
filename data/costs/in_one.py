"""Run scripts one after the other in one process, where it can be a copy of one with torch loaded.

Usage:
    python -m data.costs.in_one train_small.py FLAGS -- evaluate.py FLAGS

Each runs as by `python SCRIPT FLAGS`, but that what it prints to stdout is dropped, as make prints
its own tables; where one ends with an error, the next are not begun.

Loading torch and transformers takes as long as a third of a mini model's training. So the first
call of a make (MAKE_PID) leaves a keeper behind, which has loaded them and done nothing else; later
calls have it fork a copy, which runs the scripts with their own words, folder, environment and
output. The keeper ends with make, a copy with its caller. Where that cannot be (no Linux, no make)
each call loads for itself.
"""

import contextlib
import importlib
import itertools
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import warnings

LIBRARIES = "torch datasets transformers.trainer_seq2seq transformers.models.t5.modeling_t5".split()


def run(words):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for is_command, command in itertools.groupby(words, "--".__ne__):
        if not is_command:
            continue
        sys.argv = list(command)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


def is_mine(connection):
    """Whether the other end is a process of this user: an address of this kind has no owner."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", peer)[1] == os.getuid()


def ask(connection, words):
    """Have a copy of the keeper run the words; its exit status, 137 where it was killed."""
    socket.send_fds(connection, [b"\n"], [0, 1, 2])
    connection.sendall(json.dumps([words, os.getcwd(), dict(os.environ)]).encode() + b"\n")
    answers = connection.makefile("rb")
    copy = answers.readline()
    # Ctrl-C reaches the copy by itself, as it is of the same process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if copy:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(int(copy), signal.SIGTERM))
    return int(answers.readline() or 137)


def leave_keeper(address, make):
    """Load the libraries and fork the keeper, unless another call of this make does so."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        end_of_make = os.pidfd_open(make)
        listener.bind(address)
        for name in LIBRARIES:
            importlib.import_module(name)
    except (OSError, ImportError):
        return
    listener.listen(64)
    with warnings.catch_warnings():  # the libraries' own threads are idle, and no copy needs them
        warnings.simplefilter("ignore", DeprecationWarning)
        keeper = os.fork()
    if keeper == 0:
        keep(listener, end_of_make)
    listener.close()


def keep(listener, end_of_make):
    """Fork a copy for each request until make has ended. Never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    while end_of_make not in select.select([listener, end_of_make], [], [])[0]:
        connection, _ = listener.accept()
        if is_mine(connection) and os.fork() == 0:
            listener.close()
            serve(connection)
        connection.close()
    os._exit(0)


def serve(connection):
    """Have a copy run what is asked for in place of the caller, and tell it how that ended; where
    it was killed, no copy goes on in its run folder. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    words, folder, environment = json.loads(connection.makefile("rb").readline())
    if (copy := os.fork()) == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream, given in enumerate(streams):
            os.dup2(given, stream)
            os.close(given)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        run(words)
        sys.exit()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one to all of make's processes: the copy ends
    end_of_copy = os.pidfd_open(copy)
    with contextlib.suppress(OSError):  # the caller may be gone by now
        connection.sendall(b"%d\n" % copy)
    if end_of_copy in select.select([connection, end_of_copy], [], [])[0]:
        status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        connection.sendall(b"%d\n" % (status if status >= 0 else 128 - status))
    else:
        os.kill(copy, signal.SIGKILL)
    os._exit(0)


def name_keeper(make):
    """The socket of a make's keeper. Containers may share a network, and so the names of sockets,
    but not their files."""
    return f"\0in_one-{os.getuid()}-{os.stat('/proc/self/ns/mnt').st_ino}-{make}"


def main(words):
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of runs side by side would mix
    make = int(os.environ.get("MAKE_PID") or 0)
    if make and hasattr(os, "pidfd_open") and os.path.exists("/proc/self/ns/mnt"):
        connection = socket.socket(socket.AF_UNIX)
        if connection.connect_ex(name_keeper(make)):  # nobody listens
            leave_keeper(name_keeper(make), make)
        elif is_mine(connection):
            sys.exit(ask(connection, words))
    run(words)


if __name__ == "__main__":
    main(sys.argv[1:])
