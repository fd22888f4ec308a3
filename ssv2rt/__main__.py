"""`python -m ssv2rt`, and so `torchrun -m ssv2rt`, are the `ssv2rt` command."""

from ssv2rt.cli import main

if __name__ == "__main__":
    main()
