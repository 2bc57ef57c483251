"""Images and labels, read from files."""

from .idx import FASHION_MNIST as FASHION_MNIST, load_images as load_images, load_labels as load_labels
from .load import as_floats as as_floats, Data as Data, Images as Images, load_data as load_data
from .split import data_fingerprint as data_fingerprint
