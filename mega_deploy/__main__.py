"""`python -m mega_deploy` is `mega-deploy`."""

from mega_deploy.cli import main

main()
