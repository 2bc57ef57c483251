"""Training of ladders."""

from .batches import check_labels as check_labels, held_out_losses as held_out_losses
from .sheets import Sheets as Sheets
from .train import train_networks as train_networks
