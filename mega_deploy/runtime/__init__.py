"""Running bundles: sessions, and how their numbers compare with the trained model's. Never imports torch."""

from mega_deploy.runtime.backends import BACKENDS, Backend, find_backend
from mega_deploy.runtime.generation.generate import Generated, NewTokens, generate, generate_steps
from mega_deploy.runtime.generation.sampling import Sampling
from mega_deploy.runtime.model import Model, StateBuffer, Step
from mega_deploy.runtime.onnxruntime.loading import parity_session, parity_stream
from mega_deploy.runtime.onnxruntime.session import Session
from mega_deploy.runtime.open_bundle import OpenBundle, open_bundle
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.runtime.streams.replay import ReplaySession
from mega_deploy.runtime.streams.session import StreamSession
from mega_deploy.runtime.tensorrt.session import EngineSession

__all__ = [
    "BACKENDS",
    "Backend",
    "EngineSession",
    "Generated",
    "Model",
    "NewTokens",
    "OpenBundle",
    "ReplaySession",
    "Sampling",
    "Session",
    "SessionOptions",
    "StateBuffer",
    "Step",
    "StreamSession",
    "find_backend",
    "generate",
    "generate_steps",
    "open_bundle",
    "parity_session",
    "parity_stream",
]
