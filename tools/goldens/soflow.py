"""SoFlow: the authors' two losses, without guidance."""

import kit
import numpy as np
import torch
from torch_kit import Net, double, images, scripted

double()
info = kit.peer("zlab-princeton+SoFlow")
kit.absent("timm", "timm.models", "timm.models.vision_transformer")
kit.stand_in("dit", DiT=None)
kit.stand_in("unet", SongUNet=None)
import models as theirs

rng = np.random.default_rng(7)
w = kit.weights(rng)
diagonal, jumps = kit.points(rng, 4, jump=False), kit.points(rng, 4)


class Theirs(Net):
    """Called with labels and augmentations, which are off."""

    def forward(self, x, t, s, labels, augmented):
        return super().forward(x, t, s)


net = Theirs(w)
theirs.SongUNet = lambda **kwargs: net
model = theirs.Soflow(model_type="UNet")
common = {"labels": None, "cfg_mask": None, "cfg_scale": 1.0, "cfg_decay_time": 1.0}


def velocity(p, c):
    torch.randn_like = scripted(images(diagonal["eps"]))
    return model.get_velocity_loss(
        images(diagonal["x_0"]), torch.tensor(diagonal["s"]), p=p, eps=c, **common
    )


def consistency(p, c):
    torch.randn_like = scripted(images(jumps["eps"]))
    times = (torch.tensor(jumps[key]) for key in "swt")
    return model.get_consistency_loss(images(jumps["x_0"]), *times, p=p, eps=c, **common)


points = kit.prefixed("diagonal", diagonal) | kit.prefixed("shortleg", jumps)
function = "Soflow.get_velocity_loss, get_consistency_loss"
facts = {"recipe": "so_flow", "peer": info | {"file": "models.py", "function": function}}
notation = "their (t, l, s) are our (s, w, t); their consistency loss is linearised: its gradient is half that of the square"

# the linearised loss has no value to compare: gradients here, the mean square that they report below
both = net.result((velocity(1.0, 0.01)[0] + consistency(1.0, 0.01)[0]) / 2)
del both["loss"]
kit.store(
    "so_flow",
    kit.prefixed("student", w) | points | both,
    settings={"diagonal": 0.5},
    notation=notation + "; gradients alone are compared",
    **facts,
)
loss, square, _ = consistency(0.0, 0.01)
kit.store(
    "so_flow_square",
    kit.prefixed("student", w) | points | net.result(loss) | {"loss": square.detach().numpy() / 2},
    settings={"diagonal": 0.5, "p": 0.0},
    terms=["shortleg"],
    notation=notation + "; the loss is half of the mean square that they report, p = 0",
    **facts,
)
kit.store(
    "so_flow_velocity",
    kit.prefixed("student", w) | points | net.result(velocity(1.0, 0.01)[0]),
    settings={"diagonal": 0.5},
    terms=["diagonal"],
    notation=notation,
    **facts,
)
