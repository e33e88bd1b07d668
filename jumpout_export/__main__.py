"""`python -m jumpout_export`, for `torchrun -m` and where the script is not on the PATH."""

from jumpout_export.cli import main

if __name__ == "__main__":
    main()
