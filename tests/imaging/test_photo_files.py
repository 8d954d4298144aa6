"""Photographs: files of every depth, each beside its twin of 8 bits."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.data
import tifffile
import torch
from PIL import Image, ImageOps

from pyg_unroll.imaging.files import read_photo
from tests.dng_files import decode, orient, write_dng

oiio = pytest.importorskip('OpenImageIO', reason='needs the extra images')
pytestmark = pytest.mark.filterwarnings('error::UserWarning')

PHOTO = skimage.data.astronaut()[180:220, 60:107]
GREY = PHOTO[..., 0]
WHITE = {'u1': 255, 'u2': 65535, 'u4': 2**32 - 1}
DEPTHS = ('u1', 'u2', 'u4', 'f2', 'f4', 'f8')


def stored(pixels, depth):
    """Pixels of 8 bits at another depth."""
    if depth in WHITE:
        return pixels.astype(depth) * np.dtype(depth).type(WHITE[depth] // 255)
    return (pixels / 255).astype(depth)


def largest(depth):
    return WHITE.get(depth, 1)


def assert_reads(path, pixels, atol=1e-6):
    """A file holds pixels of 8 bits."""
    image = read_photo(path)
    truth = torch.from_numpy(np.atleast_3d(pixels) / 255).movedim(2, 0)
    assert image.dtype == torch.float32 and image.is_contiguous()
    torch.testing.assert_close(image, truth.float(), atol=atol, rtol=0)


def write(path, pixels, **attributes):
    """By OpenImageIO."""
    kind = {'e': 'half'}.get(pixels.dtype.char, pixels.dtype.name)
    spec = oiio.ImageSpec(*pixels.shape[1::-1], pixels.shape[2], kind)
    for name, value in attributes.items():
        spec.attribute(name, value)
    out = oiio.ImageOutput.create(str(path))
    assert out.open(str(path), spec) and out.write_image(pixels)
    out.close()


def write_png(path, rows, width, bits, kind, *chunks):
    """Rows of integers in a PNG, chunks beside them."""
    places = np.arange(bits - 1, -1, -1)
    packed = [
        b'\0' + np.packbits((row[:, None] >> places & 1).ravel()).tobytes()
        for row in rows
    ]
    header = struct.pack('>IIBBBBB', width, len(rows), bits, kind, 0, 0, 0)
    data = zlib.compress(b''.join(packed))
    content = b'\x89PNG\r\n\x1a\n'
    every = ((b'IHDR', header), *chunks, (b'IDAT', data), (b'IEND', b''))
    for name, body in every:
        content += struct.pack('>I', len(body)) + name + body
        content += struct.pack('>I', zlib.crc32(name + body))
    path.write_bytes(content)


def write_fits(path, pixels, bits, **cards):
    """Rows run upwards."""
    height, width = pixels.shape
    cards = {'BITPIX': bits, 'NAXIS': 2, 'NAXIS1': width, **cards}
    cards = {**cards, 'NAXIS2': height}
    order = ('BITPIX', 'NAXIS', 'NAXIS1', 'NAXIS2')
    names = [*order, *(name for name in cards if name not in order)]
    lines = ['SIMPLE  =                    T']
    lines += [f'{name:8}= {cards[name]:20}' for name in names]
    head = ''.join(f'{line:80}' for line in (*lines, 'END')).encode()
    data = pixels[::-1].tobytes()
    path.write_bytes(
        head + b' ' * (-len(head) % 2880) + data + bytes(-len(data) % 2880)
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'photo'


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize(
    ('suffix', 'depth', 'atol'),
    [
        *((s, 'u1', 0) for s in ('png', 'tif')),
        *((s, 'u2', 1e-6) for s in ('png', 'tif')),
        *(('tif', depth, 1e-3) for depth in ('f2', 'f4')),
        *(('jpg', 'u1', 0.1), ('webp', 'u1', 0)),
    ],
)
def test_upright(path, suffix, depth, orientation, atol):
    pixels = stored(orient(PHOTO, orientation), depth)
    path = path.with_suffix(f'.{suffix}')
    exif = Image.Exif()
    exif[274] = orientation
    if suffix in ('jpg', 'webp'):
        options = {'lossless': True} if suffix == 'webp' else {'quality': 100}
        Image.fromarray(pixels).save(path, exif=exif, **options)
    elif suffix == 'tif':
        tag = (274, 'H', 1, orientation, False)
        tifffile.imwrite(path, pixels, photometric='rgb', extratags=[tag])
    else:
        write(path, np.ascontiguousarray(pixels), Orientation=orientation)
    assert_reads(path, PHOTO, atol=atol + 1e-6)


@pytest.mark.parametrize('depth', DEPTHS)
class TestTiff:
    def atol(self, depth):
        return 4e-4 if depth == 'f2' else 1e-6

    @pytest.mark.parametrize('kind', ['minisblack', 'miniswhite'])
    def test_grey(self, path, depth, kind):
        pixels = stored(GREY, depth)
        if kind == 'miniswhite':
            pixels = (largest(depth) - pixels).astype(depth)
        tifffile.imwrite(path, pixels, photometric=kind)
        assert_reads(path, GREY, self.atol(depth))

    @pytest.mark.parametrize('byteorder', '<>')
    @pytest.mark.parametrize('planes', ['contig', 'separate'])
    def test_rgb(self, path, depth, byteorder, planes):
        pixels = stored(PHOTO, depth)
        if planes == 'separate':
            pixels = np.moveaxis(pixels, 2, 0)
        options = {'byteorder': byteorder, 'planarconfig': planes}
        tifffile.imwrite(path, pixels, photometric='rgb', **options)
        assert_reads(path, PHOTO, self.atol(depth))

    @pytest.mark.parametrize('kind', ['unassalpha', 'assocalpha'])
    @pytest.mark.parametrize('truth', [GREY, PHOTO], ids=['grey', 'rgb'])
    def test_transparency(self, path, depth, kind, truth):
        share = np.linspace(0.2, 1, truth.shape[1])[None, :, None]
        alpha = share * largest(depth) + 0 * np.atleast_3d(truth)[..., :1]
        pixels = np.atleast_3d(stored(truth, depth)).astype('f8')
        if depth in WHITE:
            alpha = alpha.round()
        if kind == 'assocalpha':
            pixels *= alpha / largest(depth)
        pixels = np.concatenate([pixels, alpha], 2)
        if depth in WHITE:
            pixels = pixels.round()
        tifffile.imwrite(
            path,
            pixels.astype(depth),
            photometric='rgb' if truth is PHOTO else 'minisblack',
            planarconfig='contig',
            extrasamples=[kind],
        )
        with pytest.warns(UserWarning, match='dropped the transparency'):
            # Half a step of 255, multiplied by up to five.
            assert_reads(path, truth, 0.011 if depth == 'u1' else 1.5e-3)


@pytest.mark.parametrize('depth', ['u1', 'u2'])
def test_cmyk(path, depth):
    ink = stored(255 - PHOTO, depth)
    black = np.zeros_like(ink[..., :1])
    pixels = np.concatenate([ink, black], 2)
    tifffile.imwrite(path, pixels, photometric='separated')
    assert_reads(path, PHOTO)


@pytest.mark.parametrize('depth', ['u1', 'u2'])
def test_palette(path, depth):
    chance = np.random.default_rng(0)
    size = largest(depth) + 1
    palette = chance.integers(0, 256, (3, size)).astype('u1')
    index = chance.integers(0, size, GREY.shape).astype(depth)
    tifffile.imwrite(
        path, index, photometric='palette', colormap=stored(palette, 'u2')
    )
    truth = np.moveaxis(palette[:, index], 0, 2)
    if depth == 'u2':
        with pytest.warns(UserWarning, match='bits after the first 8'):
            assert_reads(path, truth)
    else:
        assert_reads(path, truth)


@pytest.mark.parametrize('depth', ['u1', 'u2'])
def test_cielab(path, depth):
    lab = skimage.color.rgb2lab(PHOTO) * [2.55, 1, 1]
    lab *= [1, 1, 1] if depth == 'u1' else [257, 256, 256]
    signed = lab.round().astype('i4').astype(depth)
    tifffile.imwrite(path, signed, photometric='cielab')
    assert_reads(path, PHOTO, 0.013 if depth == 'u1' else 1e-4)


@pytest.mark.parametrize('compression', ['tiff_lzw', 'packbits', 'jpeg'])
def test_compressed_tiff(path, compression):
    path = path.with_suffix('.tif')
    options = {'quality': 100} if compression == 'jpeg' else {}
    Image.fromarray(PHOTO).save(path, compression=compression, **options)
    assert_reads(path, PHOTO, 0.05 if compression == 'jpeg' else 1e-6)


@pytest.mark.parametrize('bits', [1, 2, 4, 8, 16])
def test_png_of_few_and_many_bits(path, bits):
    most = 2**bits - 1
    rows = (GREY.astype('f8') * most / 255).round().astype('i4')
    write_png(path, rows, 47, bits, 0)
    assert_reads(path, rows * 255 / most)
    if bits <= 8:
        palette = np.random.default_rng(0).integers(0, 256, (most + 1, 3))
        chunk = b'PLTE', palette.astype('u1').tobytes()
        write_png(path, rows, 47, bits, 3, chunk)
        assert_reads(path, palette[rows])


@pytest.mark.parametrize('depth', ['u1', 'u2'])
def test_png_with_one_colour_transparent(path, depth):
    rows = stored(PHOTO, depth).astype('i4').reshape(40, -1)
    colour = b'tRNS', struct.pack('>HHH', *rows[0, :3].tolist())
    write_png(path, rows, 47, 8 * int(depth[1]), 2, colour)
    with pytest.warns(UserWarning, match='dropped the transparency'):
        assert_reads(path, PHOTO)


def test_linear_light(path):
    linear = decode(PHOTO / 255)
    rows = (linear * 65535).round().astype('i4').reshape(40, -1)
    gamma = b'gAMA', struct.pack('>I', 100000)
    write_png(path, rows, 47, 16, 2, gamma)
    assert_reads(path, PHOTO, 1e-3)
    for suffix, depth in (('exr', 'f2'), ('exr', 'f4'), ('hdr', 'f4')):
        path = path.with_suffix(f'.{suffix}')
        write(path, linear.astype(depth))
        assert_reads(path, PHOTO, 0.02 if suffix == 'hdr' else 2e-3)
    half = np.concatenate([linear / 2, np.full((40, 47, 1), 0.5)], 2)
    write(path.with_suffix('.exr'), half.astype('f4'))
    with pytest.warns(UserWarning, match='transparency'):
        assert_reads(path.with_suffix('.exr'), PHOTO, 2e-4)


@pytest.mark.parametrize('most', [1, 15, 255, 1023, 65535])
def test_pnm(path, most):
    depth = 'u1' if most < 256 else '>u2'
    for name, pixels in (('P5', GREY), ('P6', PHOTO)):
        pixels = (pixels / 255 * most).round().astype(depth)
        head = f'{name} 47 40 {most}\n'.encode()
        path.write_bytes(head + pixels.tobytes())
        assert_reads(path, pixels * (255 / most), 2e-5)


@pytest.mark.parametrize('order', '<>')
def test_pfm(path, order):
    for name, pixels in (('Pf', GREY), ('PF', PHOTO)):
        head = f'{name}\n47 40\n{-1 if order == "<" else 1}.0\n'.encode()
        data = (pixels[::-1] / 255).astype(f'{order}f4').tobytes()
        path.write_bytes(head + data)
        assert_reads(path, pixels)


@pytest.mark.skipif(oiio.VERSION < 30202, reason='needs OpenImageIO 3.2.2')
def test_fits(path):
    write_fits(path, GREY, 8)
    assert_reads(path, GREY)
    write_fits(path, (GREY / 255).astype('>f4'), -32)
    assert_reads(path, GREY)
    deep = (stored(GREY, 'u2').astype('i4') - 2**15).astype('>i2')
    write_fits(path, deep, 16, BZERO=2**15, BSCALE=1)
    assert_reads(path, GREY)
    write_fits(path, GREY.astype('>i4'), 32, BSCALE=1 / 255)
    assert_reads(path, GREY)
    write_fits(path, stored(GREY, 'u2').astype('>i4'), 32)
    with pytest.raises(ValueError, match='its integers have signs'):
        read_photo(path)


@pytest.mark.parametrize('depth', ['u1', 'u2'])
def test_jpeg_2000(path, depth):
    if oiio.ImageOutput.create('photo.jp2') is None:
        pytest.skip('this OpenImageIO has no JPEG 2000')
    path = path.with_suffix('.jp2')
    alpha = np.full((40, 47, 1), 99, 'u1')
    image = Image.fromarray(np.concatenate([PHOTO, alpha], 2))
    if depth == 'u1':
        image.save(path)
        with pytest.warns(UserWarning, match='transparency'):
            assert_reads(path, PHOTO)
    else:
        write(path, stored(PHOTO, depth))
        assert_reads(path, PHOTO, 1e-2)


def test_formats_of_pillow(path):
    picture = Image.fromarray(PHOTO)
    for suffix, image in (
        ('bmp', picture),
        ('tga', picture),
        ('gif', picture.quantize(256)),
        ('avif', picture),
        ('jpg', picture.convert('CMYK')),
        ('jpg', picture.convert('L')),
    ):
        file = path.with_suffix(f'.{suffix}')
        if file.suffix not in Image.registered_extensions():
            continue  # AVIF in older releases of Pillow
        image.save(file, quality=95)
        with Image.open(file) as again:
            mode = 'L' if again.mode == 'L' else 'RGB'
            assert_reads(file, np.asarray(again.convert(mode)))


def test_second_images(path):
    picture, other = (Image.fromarray(p) for p in (PHOTO, PHOTO[::-1]))
    file = path.with_suffix('.jpg')
    picture.save(file, quality=95)
    with Image.open(file) as again:
        truth = np.asarray(again)
    options = {'save_all': True, 'append_images': [other]}
    picture.save(file, format='MPO', quality=95, **options)
    assert_reads(file, truth)  # the primary one
    for suffix in ('gif', 'tif', 'webp'):
        file = path.with_suffix(f'.{suffix}')
        first, *rest = (Image.fromarray(p) for p in (PHOTO, PHOTO[::-1]))
        first.save(file, save_all=True, append_images=rest)
        with pytest.raises(ValueError, match='images, not one'):
            read_photo(file)
    with tifffile.TiffWriter(file := path.with_suffix('.tif')) as tiff:
        tiff.write(PHOTO, photometric='rgb')
        tiff.write(PHOTO[::2, ::2], photometric='rgb', subfiletype=1)
    assert_reads(file, PHOTO)


@pytest.mark.parametrize('suffix', ['', '.png', '.jpg', '.tif', '.exr', '.dng'])
def test_content_says_what_a_file_is(path, suffix):
    file = path.with_suffix(suffix)
    tifffile.imwrite(path, stored(PHOTO, 'u2'), photometric='rgb')
    path.rename(file)
    assert_reads(file, PHOTO)
    write_png(file, PHOTO.astype('i4').reshape(40, -1), 47, 8, 2)
    assert_reads(file, PHOTO)
    Image.fromarray(PHOTO).save(file, format='BMP')
    assert_reads(file, PHOTO)


def test_profiles_are_told(path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB'))
    known = profile.tobytes()
    names = ('sRGB'.encode('utf-16-be'), 'wide'.encode('utf-16-be'))
    for suffix in ('png', 'jpg', 'tif'):
        file = path.with_suffix(f'.{suffix}')
        options = {'quality': 100} if suffix == 'jpg' else {}
        image = Image.fromarray(PHOTO)
        image.save(file, icc_profile=known, **options)
        assert_reads(file, PHOTO, 0.1)  # without a warning
        image.save(file, icc_profile=known.replace(*names), **options)
        with pytest.warns(UserWarning, match="left out the profile 'wide"):
            assert_reads(file, PHOTO, 0.1)


def pages(path):
    tifffile.imwrite(path, np.stack([GREY] * 2), photometric='minisblack')


def beyond(path):
    tifffile.imwrite(path, PHOTO / 127.5, photometric='rgb')


def signed(path):
    tifffile.imwrite(path, GREY.astype('i2'), photometric='minisblack')


def truncated(path):
    tifffile.imwrite(path, PHOTO, photometric='rgb')
    path.write_bytes(path.read_bytes()[:3000])


def channels(path):
    tifffile.imwrite(path, np.zeros((9, 9, 7), 'u1'), photometric='rgb')


@pytest.mark.parametrize(
    ('make', 'problem'),
    [
        (lambda path: None, 'it does not exist'),
        (Path.mkdir, 'it is a folder'),
        (Path.touch, 'the file is empty'),
        (lambda path: path.write_text('text'), 'it is not an image file'),
        (lambda path: path.write_bytes(b'\0\0\0\x18ftypheic'), 'pillow-heif'),
        (lambda path: write_dng(path, PHOTO / 255), 'it is a camera file'),
        (pages, 'several images'),
        (beyond, 'not all between 0 and 1'),
        (signed, 'its integers have signs'),
        (truncated, 'TIFF'),
        (channels, 'its channels are'),
    ],
)
def test_refused(path, make, problem):
    make(path)
    with pytest.raises(ValueError, match=f"read image '.*photo': .*{problem}"):
        read_photo(path)


def test_suite_of_pillow():
    # A folder with its test images, and what Pillow makes of them.
    folder = os.environ.get('IMAGE_SUITE')
    if not folder:
        pytest.skip('no folder of images in IMAGE_SUITE')
    compared = 0
    for file in sorted(Path(folder).rglob('*')):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                image = read_photo(file)
                with Image.open(file) as twin:
                    if twin.mode not in ('L', 'RGB') or 'gamma' in twin.info:
                        continue
                    pixels = np.asarray(ImageOps.exif_transpose(twin))
        except (ValueError, OSError, SyntaxError):
            continue
        truth = torch.from_numpy(np.atleast_3d(pixels) / 255).movedim(2, 0)
        assert image.shape == truth.shape, file
        assert float((image - truth).abs().max()) < 0.01, file
        compared += 1
    assert compared > 50
