"""The table of the built-in classes: indices, names, synonyms, what contains what."""

import types

from input_pipeline.anatomy.structure import Structure

# What stands for {word} in the phrases of paired organs.
_SIDES = {
  'right': {'side': 'right', 'rt': 'rt', 'r': 'R', 'er': 'dexter', 'ra': 'dextra', 'um': 'dextrum'},
  'left': {
    'side': 'left',
    'rt': 'lt',
    'r': 'L',
    'er': 'sinister',
    'ra': 'sinistra',
    'um': 'sinistrum',
  },
}


def _pair(right: int, left: int, name: str, synonyms: str, held_out: str) -> list[Structure]:
  """The two structures of a paired organ; {side} and the like in the phrases become its side."""
  return [
    Structure(
      index,
      name.format(**words),
      side=side,
      noun=f'the {name.format(**words)}',
      synonyms=_split(synonyms.format(**words)),
      held_out=_split(held_out.format(**words)),
    )
    for index, (side, words) in zip((right, left), _SIDES.items(), strict=True)
  ]


def _one(index: int, noun: str, synonyms: str, held_out: str, *parents: str) -> list[Structure]:
  """An unpaired structure; its name is the noun phrase without the article."""
  name = noun.split(' ', 1)[1]
  return [
    Structure(
      index,
      name,
      parents=parents,
      noun=noun,
      synonyms=_split(synonyms),
      held_out=_split(held_out),
    )
  ]


def _split(phrases: str) -> tuple[str, ...]:
  return tuple(phrase.strip() for phrase in phrases.split('|'))


_KIDNEYS = ('right kidney', 'left kidney')
_LUNGS = ('right lung', 'left lung')

# Synonyms share their words (parenchyma, entire, with its wall, on the right side ...) so that a
# held-out phrase is made of words that training showed in other company.
# fmt: off
STRUCTURES = [
  *_one(1, 'a spleen',
        'lien | splenic parenchyma | splenic tissue | entire spleen',
        'parenchyma of the spleen | whole spleen'),
  *_pair(2, 3, '{side} kidney',
         'kidney on the {side} side | {side}-sided kidney | {rt} kidney | ren {er} | '
         '{side} renal parenchyma | kidney of the {side} side',
         '{r} kidney | renal parenchyma on the {side} side | parenchyma of the {side} kidney'),
  *_one(4, 'a gallbladder',
        'gall bladder | vesica biliaris | vesica fellea | GB | gallbladder lumen and wall',
        'gallbladder with its wall | lumen and wall of the gall bladder'),
  *_one(5, 'an esophagus',
        'oesophagus | gullet | food pipe | esophageal lumen and wall | entire esophagus',
        'whole oesophagus | oesophagus with its wall'),
  *_one(6, 'a liver',
        'hepar | hepatic parenchyma | liver parenchyma | whole liver | lobes of the liver',
        'hepatic tissue | parenchyma of the liver'),
  *_one(7, 'a stomach',
        'gaster | gastric lumen and wall | whole stomach | stomach with its wall | '
        'gastric fundus body and antrum',
        'entire stomach | lumen and wall of the stomach'),
  *_one(8, 'an aorta',
        'abdominal aorta | thoracic and abdominal aorta | aorta abdominalis | '
        'thoracoabdominal aorta | aortic lumen and wall',
        'abdominal and thoracic aorta | aorta with its wall'),
  *_one(9, 'a postcava',
        'inferior vena cava | IVC | vena cava inferior | inferior caval vein | lower vena cava | '
        'posterior vena cava',
        'lower caval vein | inferior cava'),
  *_one(10, 'a portal and splenic vein',
        'portal vein and splenic vein | vena portae and vena splenica | portal venous system | '
        'portosplenic vein | portal vein with splenic vein | PV and SV | portosplenic confluence',
        'splenic vein and portal vein | portal and splenic venous system'),
  *_one(11, 'a pancreas',
        'pancreatic gland | pancreatic parenchyma | pancreatic tissue | whole pancreas | '
        'head body and tail of pancreas',
        'parenchyma of the pancreas | entire pancreas'),
  *_pair(12, 13, '{side} adrenal gland',
         '{side} suprarenal gland | {side} adrenal | adrenal gland on the {side} side | '
         '{r} adrenal | glandula suprarenalis {ra} | {rt} adrenal gland | '
         'adrenal of the {side} side',
         'suprarenal gland on the {side} side | {rt} suprarenal gland'),
  *_one(14, 'a duodenum',
        'duodenal loop | duodenal C-loop | intestinum duodenum | duodenal lumen and wall | '
        'first part of the small bowel',
        'loop of the duodenum | duodenum with its wall'),
  *_one(15, 'a hepatic vessel',
        'hepatic vessels | liver vessels | intrahepatic vessels | hepatic vasculature | '
        'blood vessels of the liver | hepatic veins and portal branches',
        'vasculature of the liver | intrahepatic blood vessels', 'liver'),
  *_pair(16, 17, '{side} lung',
         'lung on the {side} side | {side}-sided lung | {rt} lung | pulmo {er} | '
         '{side} pulmonary parenchyma | lobes of the {side} lung | lung of the {side} side',
         '{r} lung | pulmonary parenchyma on the {side} side'),
  *_one(18, 'a colon',
        'large bowel | large intestine | intestinum crassum | colonic frame | '
        'ascending transverse and descending colon | colonic lumen and wall | entire colon',
        'whole large bowel | colon with its wall'),
  *_one(19, 'an intestine',
        'small bowel | small intestine | jejunum and ileum | small bowel loops | '
        'intestinum tenue | loops of small intestine',
        'loops of small bowel | ileum and jejunum'),
  *_one(20, 'a rectum',
        'rectal ampulla | intestinum rectum | rectal lumen and wall | entire rectum',
        'ampulla of the rectum | rectum with its wall'),
  *_one(21, 'a bladder',
        'urinary bladder | vesica urinaria | UB | urinary bladder lumen and wall | '
        'bladder with its wall',
        'urinary bladder with its wall | whole urinary bladder'),
  *_one(22, 'a prostate',
        'prostate gland | prostatic gland | glandula prostatica | prostata | prostatic tissue',
        'prostatic parenchyma | whole prostate gland'),
  *_pair(24, 23, '{side} femoral head',
         '{side} head of femur | head of the {side} femur | caput femoris {um} | '
         'femoral head on the {side} side | {r} femoral head | {side} caput femoris',
         '{rt} femoral head | head of femur on the {side} side'),
  *_one(25, 'a celiac trunk',
        'coeliac trunk | celiac axis | truncus coeliacus | celiac artery | coeliac axis | '
        'coeliac arterial trunk',
        'coeliac artery | celiac arterial trunk'),
  *_one(26, 'a kidney tumor',
        'renal tumor | renal tumour | kidney tumour | renal mass | renal neoplasm | '
        'renal cell carcinoma | kidney cancer | tumor of the kidney',
        'kidney neoplasm | renal cancer | mass of the kidney', *_KIDNEYS),
  *_one(27, 'a liver tumor',
        'hepatic tumor | liver tumour | hepatic neoplasm | liver mass | liver cancer | '
        'hepatic metastasis | hepatocellular carcinoma | focal liver lesion | tumor of the liver',
        'hepatic tumour | liver neoplasm | focal hepatic lesion', 'liver'),
  *_one(28, 'a pancreas tumor',
        'pancreatic tumor | pancreatic tumour | pancreatic neoplasm | pancreatic mass | '
        'pancreatic ductal adenocarcinoma | pancreatic cancer | tumor of the pancreas',
        'pancreas tumour | pancreatic carcinoma | mass of the pancreas', 'pancreas'),
  *_one(29, 'a hepatic vessel tumor',
        'hepatic vessel tumour | tumor of the hepatic vessels | liver vessel tumor | '
        'hepatic vascular tumor | tumour adjacent to the liver vessels | hepatic vascular mass',
        'hepatic vascular tumour | tumor adjacent to the hepatic vessels', 'liver'),
  *_one(30, 'a lung tumor',
        'lung tumour | pulmonary tumor | lung cancer | pulmonary neoplasm | pulmonary mass | '
        'bronchogenic carcinoma | lung carcinoma | tumor of the lung',
        'pulmonary tumour | lung neoplasm | mass of the lung', *_LUNGS),
  *_one(31, 'a colon tumor',
        'colonic tumor | colon tumour | colon cancer | colonic neoplasm | colonic mass | '
        'colon carcinoma | large bowel tumor | tumor of the colon',
        'colonic tumour | large bowel cancer | mass of the colon', 'colon'),
  *_one(32, 'a kidney cyst',
        'renal cyst | cyst of the kidney | simple renal cyst | cortical cyst of the kidney | '
        'cystic lesion of the kidney',
        'cystic renal lesion | simple kidney cyst', *_KIDNEYS),
  *_one(33, 'a brainstem',
        'brain stem | truncus encephali | midbrain pons and medulla oblongata | '
        'stem of the brain | entire brainstem',
        'whole brain stem | pons medulla oblongata and midbrain'),
  *_one(34, 'a spinal cord',
        'medulla spinalis | spinal medulla | cord in the spinal canal | cervical spinal cord | '
        'cervical and thoracic cord | myelon',
        'thoracic and cervical spinal cord | spinal cord in the canal'),
  *_pair(35, 36, '{side} parotid',
         '{side} parotid gland | {side} parotid salivary gland | parotid on the {side} side | '
         '{r} parotid | glandula parotidea {ra} | {rt} parotid gland | parotid of the {side} side',
         'parotid gland on the {side} side | {rt} parotid'),
  *_one(37, 'a larynx',
        'voice box | laryngeal airway and cartilage | glottic and supraglottic larynx | '
        'laryngeal structures | entire larynx',
        'supraglottic and glottic larynx | whole larynx'),
  *_one(38, 'a mandible',
        'lower jaw | mandibula | mandibular bone | lower jaw bone | jaw bone',
        'bone of the lower jaw | whole mandible'),
]
# fmt: on

SIDED_CODES = types.MappingProxyType(
  {
    201: ('kidney tumor', 'right kidney'),
    202: ('kidney tumor', 'left kidney'),
    203: ('kidney cyst', 'right kidney'),
    204: ('kidney cyst', 'left kidney'),
    205: ('lung tumor', 'right lung'),
    206: ('lung tumor', 'left lung'),
  }
)
