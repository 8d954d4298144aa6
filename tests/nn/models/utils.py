"""What the tests of the stacks share."""


def silent_parameters(model):
    """Names of the parameters that the last `backward` did not reach."""
    return {
        name
        for name, value in model.named_parameters()
        if value.grad is None or not value.grad.abs().sum() > 0
    }


def psnr(out, image):
    return float(-10 * (out - image).square().mean().log10())
