"""OpenClonk's sound effects: their container, and who made which.

Sound.ocg is a C4Group: a gzip stream with two altered magic bytes; a scrambled
header of 204 bytes with the number of entries; entries of 316 bytes; the data,
where folders are groups again.
"""

import struct
import zlib

HEADER_BYTES = 204
ENTRY_BYTES = 316


def descramble(header):
  header = bytearray(byte ^ 237 for byte in header)
  for k in range(0, HEADER_BYTES - 2, 3):
    header[k], header[k + 2] = header[k + 2], header[k]
  return header


def entries(group):
  """Yields (name, is folder, bytes) of an uncompressed group."""
  header = descramble(group[:HEADER_BYTES])
  num_entries = struct.unpack_from('<i', header, 36)[0]
  data = HEADER_BYTES + num_entries * ENTRY_BYTES
  for start in range(HEADER_BYTES, data, ENTRY_BYTES):
    name = group[start:start + 257].split(b'\0')[0].decode('latin1')
    _, folder, size, _, offset = struct.unpack_from('<5i', group, start + 260)
    yield name, folder, group[data + offset:data + offset + size]


def write(group, folder):
  folder.mkdir(parents=True)
  for name, is_folder, data in entries(group):
    if is_folder:
      write(data, folder / name)
    else:
      (folder / name).write_bytes(data)


def extract(path, folder):
  """Unpacks the C4Group file `path` into the new `folder`."""
  packed = path.read_bytes()
  write(zlib.decompress(b'\x1f\x8b' + packed[2:], wbits=31), folder)


BY, CC0 = 'CC-BY-3.0', 'CC0-1.0'
_SKIN = 'Clonk.ocg/Skin.ocg/'
_WOOD = 'Hits.ocg/Materials.ocg/Wood.ocg/'
_METAL = 'Hits.ocg/Materials.ocg/Metal.ocg/'
# From Sound.ocg/authors.txt: label, author, licence, files. Sounds that it does
# not name, or that mix several sources, are left out.
CREDITED = (
    ('voice', 'ala', BY, (f'{_SKIN}Adventurer.ocg/*[!8].wav',)),
    ('voice', 'ala', BY, (f'{_SKIN}Alchemist.ocg/*.wav',)),
    ('voice', 'ala', BY, (f'{_SKIN}Steampunk.ocg/*.wav',)),
    ('animal', 'ala', BY, ('Animals.ocg/Bat.ocg/*.wav',)),
    ('animal', 'ala', BY, ('Animals.ocg/Mooq.ocg/*.wav',)),
    ('animal', 'Ringwaul', BY, (
        'Animals.ocg/Monster.ocg/*.wav', 'Animals.ocg/Wipf.ocg/Snuff[12].wav',
        'Animals.ocg/Wipf.ocg/Aroof.wav', 'Animals.ocg/Wipf.ocg/Whine.wav')),
    ('weapon', 'Checkmaty', BY, (
        'Objects.ocg/Weapons.ocg/Bow.ocg/*.ogg',
        'Objects.ocg/Weapons.ocg/Javelin.ocg/*.ogg',
        'Objects.ocg/Weapons.ocg/Shield.ocg/*.ogg',
        'Objects.ocg/Weapons.ocg/Weapon*.ogg')),
    ('ambience', 'dobroide', BY, ('Environment.ocg/BirdsLoop.ogg',)),
    ('fire', 'dobroide', BY, ('Fire.ocg/Fire.ogg',)),
    ('ambience', 'ERH', BY, ('Environment.ocg/WindLoop.ogg',)),
    ('ambience', 'volivieri', BY, ('Environment.ocg/Waterfall.ogg',)),
    ('liquid', 'CGEffex', BY, ('Liquids.ocg/Splash?.wav',)),
    ('fire', 'CGEffex', BY, ('Fire.ocg/Inflame.ogg',)),
    ('liquid', 'Mirors_', BY, ('Liquids.ocg/Pshshsh.ogg',)),
    ('machine', 'cambra', BY, ('Structures.ocg/FanLoop.ogg',)),
    ('machine', 'Halleck', BY, ('Objects.ocg/Electrical.ogg',)),
    ('machine', 'pempi', BY, ('Structures.ocg/Elevator.ocg/[MS]*.ogg',)),
    ('machine', 'jenc', BY, ('Structures.ocg/Elevator.ocg/Drilling.ogg',)),
    ('machine', 'earthsounds', BY, ('Structures.ocg/WheelsTurn.ogg',)),
    ('impact', 'cmusounddesign', BY, ('Structures.ocg/HingeCreak?.ogg',)),
    ('impact', 'HerbertBoland', BY, (f'{_WOOD}WoodHit?.ogg',)),
    ('footsteps', 'HerbertBoland', BY, ('Clonk.ocg/Movement.ocg/Step*.ogg',)),
    ('footsteps', 'Pat', BY, (
        'Clonk.ocg/Movement.ocg/Roll.ogg',
        'Clonk.ocg/Movement.ocg/Rustle*.ogg')),
    ('impact', 'Stephen Hall', BY, ('Clonk.ocg/Action.ocg/Dig.ocg/Dig?.wav',)),
    ('impact', 'Christian James Muise', BY, (
        'Environment.ocg/Tree.ocg/Chop?.wav',)),
    ('impact', 'Connum', BY, (
        'Hits.ocg/Materials.ocg/Glass.ocg/GlassShatter.ogg',)),
    ('liquid', 'qubodup', BY, ('Liquids.ocg/Sizzle.ogg',)),
    ('liquid', 'luffy', BY, ('Liquids.ocg/SmokeSizzle.ogg',)),
    ('fire', 'Julien Matthey', BY, ('Fire.ocg/Fireball.ogg',)),
    ('fire', 'primeval_polypod', BY, ('Objects.ocg/Boompack.ocg/Fly.ogg',)),
    ('ambience', 'xerana', BY, ('Environment.ocg/Lightning.ocg/Thunder1.ogg',)),
    ('ambience', 'infopablo', BY, (
        'Environment.ocg/Lightning.ocg/Thunder2.ogg',)),
    ('ambience', 'nicStage', BY, (
        'Environment.ocg/Lightning.ocg/Thunder3.ogg',)),
    ('ambience', 'jrosin', BY, ('Environment.ocg/Lightning.ocg/Thunder4.ogg',)),
    ('ambience', 'shaka9', BY, ('Environment.ocg/Lightning.ocg/Thunder5.ogg',)),
    ('impact', 'adcbicycle', CC0, (
        'Hits.ocg/SoftTouch?.ogg', 'Hits.ocg/SoftHit2.ogg',
        'Hits.ocg/GeneralHit?.ogg', f'{_METAL}DullMetalHit?.ogg',
        f'{_WOOD}DullWoodHit2.ogg',
        'Hits.ocg/Materials.ocg/Glass.ocg/GlassHit?.ogg')),
    ('impact', 'mbezzola', CC0, (
        'Hits.ocg/Materials.ocg/Rock.ocg/RockHit?.ogg',)),
    ('impact', 'alienistcog', CC0, (f'{_WOOD}WoodCreak?.ogg',)),
    ('fire', 'RytmenPinnen', CC0, ('Fire.ocg/Fuse*.ogg',)),
    ('ambience', 'prozaciswack', CC0, (
        'Environment.ocg/Disasters.ocg/Earthquake.ogg',)),
    ('liquid', 'fryzu82', CC0, ('Liquids.ocg/Boiling.ogg',)),
    ('machine', 'BenNevis', CC0, ('Structures.ocg/SteamEngine.ogg',)),
    ('machine', 'felix.blume', CC0, ('Structures.ocg/Pumpjack.ogg',)),
    ('machine', 'tc630', CC0, ('Structures.ocg/Furnace.ocg/*.ogg',)),
    ('machine', 'kolczok', CC0, ('Structures.ocg/SawmillRipcut.ogg',)),
    ('animal', 'Zywx', CC0, ('Animals.ocg/MosquitoBuzz.ogg',)),
    ('animal', 'parnellij', CC0, ('Animals.ocg/Puka.ocg/Teleport*.wav',)),
)
