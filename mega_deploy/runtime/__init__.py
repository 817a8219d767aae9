"""Running bundles: sessions, and how their numbers compare with the trained model's. Never imports torch."""

from mega_deploy.runtime.generation.generate import Generated, NewTokens, generate, generate_steps
from mega_deploy.runtime.generation.sampling import Sampling
from mega_deploy.runtime.onnxruntime.emulation import judging_session
from mega_deploy.runtime.onnxruntime.session import Session, SessionOptions
from mega_deploy.runtime.open_bundle import OpenBundle, open_bundle
from mega_deploy.runtime.streams.replay import SteppedSession
from mega_deploy.runtime.streams.session import StreamSession
from mega_deploy.runtime.tensorrt.session import EngineSession

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
