"""`python -m toycircuits` is the command `toycircuits`."""

from toycircuits.cli import run

if __name__ == "__main__":
    run()
