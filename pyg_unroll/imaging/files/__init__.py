"""Files of images: camera files, mosaics and photographs."""

from pyg_unroll.imaging.files.mosaics import looks_like_mosaic, read_mosaic
from pyg_unroll.imaging.files.photos import read_photo
from pyg_unroll.imaging.files.raw import RawPhoto, is_raw, read_raw

__all__ = [
    'RawPhoto',
    'is_raw',
    'looks_like_mosaic',
    'read_mosaic',
    'read_photo',
    'read_raw',
]
