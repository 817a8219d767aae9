import sys
from pathlib import Path

# With --import-mode=importlib a test cannot import the module beside it otherwise.
sys.path.insert(0, str(Path(__file__).parent))
