"""Codecs: a micro-batch of encoded records into columns. Pure: imports neither Beam nor torch."""

from contbatch.transforms.codecs.avro import AvroCodec
from contbatch.transforms.codecs.codec import Codec, Decoded

__all__ = ["AvroCodec", "Codec", "Decoded"]
