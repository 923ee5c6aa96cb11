# locks.py WHAT FILE MODE [START]: locks ten bytes of a file, from 10 or START on. WHAT is
# try (now or never), hold (and keep it until killed), or wait (until it can be had).
# Says "got" and after how many seconds if it waited, "busy", or an error.
import errno, fcntl, os, sys, time

what, name, mode = sys.argv[1:4]
start = int(sys.argv[4]) if len(sys.argv) > 4 else 10
how = fcntl.LOCK_EX if mode == "exclusive" else fcntl.LOCK_SH
f = open(name, "r+")
began = time.time()
try:
    fcntl.lockf(f, how if what == "wait" else how | fcntl.LOCK_NB, 10, start)
except OSError as e:
    print("busy" if e.errno in (errno.EAGAIN, errno.EACCES) else os.strerror(e.errno), flush=True)
    sys.exit(0)
print("got" if what != "wait" else "got %d" % (time.time() - began), flush=True)
if what == "hold":
    time.sleep(1000)
