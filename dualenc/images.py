from PIL import Image
import io
class BadImage(ValueError): pass
def decode(data):
    try: return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as e: raise BadImage("image does not decode") from e
def open_image(path):
    return decode(open(path,'rb').read())
