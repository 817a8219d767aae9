"""Running bundles: sessions, and how their numbers compare with the trained model's. Never imports torch."""

from mega_deploy.runtime.decoding import Generated, NewTokens, generate, generate_steps
from mega_deploy.runtime.emulation import judging_session
from mega_deploy.runtime.engine import EngineSession
from mega_deploy.runtime.opened import OpenBundle, open_bundle
from mega_deploy.runtime.sampling import Sampling
from mega_deploy.runtime.session import Session, SessionOptions
from mega_deploy.runtime.stepping import SteppedSession
from mega_deploy.runtime.stream import StreamSession

__all__ = [
    "EngineSession",
    "Generated",
    "NewTokens",
    "OpenBundle",
    "Sampling",
    "Session",
    "SessionOptions",
    "SteppedSession",
    "StreamSession",
    "generate",
    "generate_steps",
    "judging_session",
    "open_bundle",
]
