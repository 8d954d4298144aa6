"""Files of images: camera files and photographs."""

from pyg_unroll.imaging.files.photos import read_photo
from pyg_unroll.imaging.files.raw import RawPhoto, is_raw, read_raw

__all__ = ['RawPhoto', 'is_raw', 'read_photo', 'read_raw']
