"""One table of languages: codes, own name, family, script.

The endonyms of the paper's 15 languages are those of its prompts (arXiv 2508.17078, released code);
the others are from CLDR. Codes: ISO 639-1 (as in MUSE), ISO 639-3, FLORES-200; scripts: ISO 15924.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from bridgex_jax.errors import InputError


@dataclass(frozen=True)
class Language:
    """A language; `code` is the ISO 639-1 code, which MUSE and our files use."""

    code: str
    iso3: str
    flores: str
    endonym: str
    name: str
    family: str
    scripts: frozenset[str]


# code, ISO 639-3, FLORES-200, endonym, English name, family, scripts
_PAPER = """
en eng eng_Latn | English          | English    | Indo-European | Latn
de deu deu_Latn | Deutsch          | German     | Indo-European | Latn
fr fra fra_Latn | Français         | French     | Indo-European | Latn
it ita ita_Latn | Italiano         | Italian    | Indo-European | Latn
pt por por_Latn | Português        | Portuguese | Indo-European | Latn
es spa spa_Latn | Español          | Spanish    | Indo-European | Latn
zh zho zho_Hans | 中文             | Chinese    | Sino-Tibetan  | Hani
ja jpn jpn_Jpan | 日本語           | Japanese   | Japonic       | Hani Hira Kana
ar ara arb_Arab | عربي             | Arabic     | Afro-Asiatic  | Arab
he heb heb_Hebr | עִברִית          | Hebrew     | Afro-Asiatic  | Hebr
id ind ind_Latn | Indonesia        | Indonesian | Austronesian  | Latn
tl tgl tgl_Latn | Tagalog          | Tagalog    | Austronesian  | Latn
fi fin fin_Latn | suomi            | Finnish    | Uralic        | Latn
hu hun hun_Latn | magyar           | Hungarian  | Uralic        | Latn
sw swa swh_Latn | kiswahili        | Swahili    | Niger-Congo   | Latn
"""

_OTHERS = """
af afr afr_Latn | Afrikaans        | Afrikaans  | Indo-European | Latn
am amh amh_Ethi | አማርኛ            | Amharic    | Afro-Asiatic  | Ethi
az aze azj_Latn | azərbaycan       | Azerbaijani | Turkic       | Latn
be bel bel_Cyrl | беларуская       | Belarusian | Indo-European | Cyrl
bg bul bul_Cyrl | български        | Bulgarian  | Indo-European | Cyrl
bn ben ben_Beng | বাংলা             | Bengali    | Indo-European | Beng
bs bos bos_Latn | bosanski         | Bosnian    | Indo-European | Latn Cyrl
ca cat cat_Latn | català           | Catalan    | Indo-European | Latn
cs ces ces_Latn | čeština          | Czech      | Indo-European | Latn
cy cym cym_Latn | Cymraeg          | Welsh      | Indo-European | Latn
da dan dan_Latn | dansk            | Danish     | Indo-European | Latn
el ell ell_Grek | Ελληνικά         | Greek      | Indo-European | Grek
et est est_Latn | eesti            | Estonian   | Uralic        | Latn
eu eus eus_Latn | euskara          | Basque     | isolate       | Latn
fa fas pes_Arab | فارسی            | Persian    | Indo-European | Arab
ga gle gle_Latn | Gaeilge          | Irish      | Indo-European | Latn
gl glg glg_Latn | galego           | Galician   | Indo-European | Latn
gu guj guj_Gujr | ગુજરાતી            | Gujarati   | Indo-European | Gujr
ha hau hau_Latn | Hausa            | Hausa      | Afro-Asiatic  | Latn
hi hin hin_Deva | हिन्दी             | Hindi      | Indo-European | Deva
hr hrv hrv_Latn | hrvatski         | Croatian   | Indo-European | Latn
hy hye hye_Armn | հայերեն          | Armenian   | Indo-European | Armn
ig ibo ibo_Latn | Igbo             | Igbo       | Niger-Congo   | Latn
is isl isl_Latn | íslenska         | Icelandic  | Indo-European | Latn
jv jav jav_Latn | Jawa             | Javanese   | Austronesian  | Latn
ka kat kat_Geor | ქართული          | Georgian   | Kartvelian    | Geor
kk kaz kaz_Cyrl | қазақ тілі       | Kazakh     | Turkic        | Cyrl
km khm khm_Khmr | ខ្មែរ             | Khmer      | Austroasiatic | Khmr
kn kan kan_Knda | ಕನ್ನಡ             | Kannada    | Dravidian     | Knda
ko kor kor_Hang | 한국어           | Korean     | Koreanic      | Hang Hani
ky kir kir_Cyrl | кыргызча         | Kyrgyz     | Turkic        | Cyrl
lo lao lao_Laoo | ລາວ              | Lao        | Kra-Dai       | Laoo
lt lit lit_Latn | lietuvių         | Lithuanian | Indo-European | Latn
lv lav lvs_Latn | latviešu         | Latvian    | Indo-European | Latn
mk mkd mkd_Cyrl | македонски       | Macedonian | Indo-European | Cyrl
ml mal mal_Mlym | മലയാളം          | Malayalam  | Dravidian     | Mlym
mn mon khk_Cyrl | монгол           | Mongolian  | Mongolic      | Cyrl
mr mar mar_Deva | मराठी             | Marathi    | Indo-European | Deva
ms msa zsm_Latn | Melayu           | Malay      | Austronesian  | Latn
mt mlt mlt_Latn | Malti            | Maltese    | Afro-Asiatic  | Latn
my mya mya_Mymr | မြန်မာ             | Burmese    | Sino-Tibetan  | Mymr
ne nep npi_Deva | नेपाली             | Nepali     | Indo-European | Deva
nl nld nld_Latn | Nederlands       | Dutch      | Indo-European | Latn
no nor nob_Latn | norsk            | Norwegian  | Indo-European | Latn
pa pan pan_Guru | ਪੰਜਾਬੀ             | Punjabi    | Indo-European | Guru
pl pol pol_Latn | polski           | Polish     | Indo-European | Latn
ps pus pbt_Arab | پښتو             | Pashto     | Indo-European | Arab
ro ron ron_Latn | română           | Romanian   | Indo-European | Latn
ru rus rus_Cyrl | русский          | Russian    | Indo-European | Cyrl
rw kin kin_Latn | Ikinyarwanda     | Kinyarwanda | Niger-Congo  | Latn
si sin sin_Sinh | සිංහල             | Sinhala    | Indo-European | Sinh
sk slk slk_Latn | slovenčina       | Slovak     | Indo-European | Latn
sl slv slv_Latn | slovenščina      | Slovenian  | Indo-European | Latn
so som som_Latn | Soomaali         | Somali     | Afro-Asiatic  | Latn
sq sqi als_Latn | shqip            | Albanian   | Indo-European | Latn
sr srp srp_Cyrl | српски           | Serbian    | Indo-European | Cyrl Latn
sv swe swe_Latn | svenska          | Swedish    | Indo-European | Latn
ta tam tam_Taml | தமிழ்             | Tamil      | Dravidian     | Taml
te tel tel_Telu | తెలుగు             | Telugu     | Dravidian     | Telu
tg tgk tgk_Cyrl | тоҷикӣ           | Tajik      | Indo-European | Cyrl
th tha tha_Thai | ไทย              | Thai       | Kra-Dai       | Thai
tr tur tur_Latn | Türkçe           | Turkish    | Turkic        | Latn
uk ukr ukr_Cyrl | українська       | Ukrainian  | Indo-European | Cyrl
ur urd urd_Arab | اردو             | Urdu       | Indo-European | Arab
uz uzb uzn_Latn | o‘zbek           | Uzbek      | Turkic        | Latn Cyrl
vi vie vie_Latn | Tiếng Việt       | Vietnamese | Austroasiatic | Latn
xh xho xho_Latn | IsiXhosa         | Xhosa      | Niger-Congo   | Latn
yo yor yor_Latn | Èdè Yorùbá       | Yoruba     | Niger-Congo   | Latn
zu zul zul_Latn | isiZulu          | Zulu       | Niger-Congo   | Latn
"""

# Codes that other sources use for the same language.
_ALIASES = {
    "cmn": "zh", "fil": "tl", "in": "id", "iw": "he", "nb": "no", "nob": "no", "zsm": "ms",
    "arb": "ar", "swh": "sw", "pes": "fa", "npi": "ne", "azj": "az", "uzn": "uz", "khk": "mn",
    "lvs": "lv", "als": "sq", "pbt": "ps",
}  # fmt: skip

# A code, then a script and a region (BCP 47, POSIX locales, FLORES-200): zh-CN, he_IL, zho_Hant.
_TAG = re.compile(r"([a-z]{2,3})([-_][a-z]{4})?([-_]([a-z]{2}|[0-9]{3}))?")


def _rows(table: str) -> dict[str, Language]:
    languages = {}
    for row in table.strip().splitlines():
        codes, endonym, name, family, scripts = (cell.strip() for cell in row.split("|"))
        code, iso3, flores = codes.split()
        languages[code] = Language(
            code, iso3, flores, endonym, name, family, frozenset(scripts.split())
        )
    return languages


LANGUAGES: dict[str, Language] = _rows(_PAPER) | _rows(_OTHERS)
PAPER_LANGUAGES: tuple[str, ...] = tuple(_rows(_PAPER))

_BY_CODE: dict[str, Language] = {
    key.lower(): entry
    for entry in LANGUAGES.values()
    for key in (entry.code, entry.iso3, entry.flores)
} | {alias: LANGUAGES[code] for alias, code in _ALIASES.items()}


_ADDED: dict[str, Language] = {}  # by `add_language`, before a command begins


def language(code: str) -> Language:
    """The language of a MUSE/ISO 639-1, ISO 639-3 or FLORES-200 code, with or without a region.

    Raises InputError, with the nearest matches, for a code that the table does not have.
    """
    key = code.strip().lower()
    if key in _BY_CODE:
        return _BY_CODE[key]
    tag = _TAG.fullmatch(key)
    if tag and tag[1] in _BY_CODE:
        return _BY_CODE[tag[1]]
    raise InputError(f"unknown language code {code!r}", remedy=_suggestion(key))


def add_language(code: str, endonym: str, scripts: frozenset[str]) -> Language:
    """A language that the table lacks, for the rest of this process; its code names it everywhere.

    Raises InputError for a code of another form, and for one of a language of the table.
    """
    if not endonym or not re.fullmatch(r"[a-z]{2,3}(_[A-Z][a-z]{3})?", code):
        raise InputError(
            f"{code},{endonym} is no code and name of a language",
            remedy="write for example --language quy,Runasimi",
        )
    known = _BY_CODE.get(code.lower())
    if known is not None and (known.code not in _ADDED or known.endonym != endonym):
        raise InputError(
            f"{code} is {known.name} ({known.endonym}) already",
            remedy="use the table's, or another code",
        )
    entry = Language(code, code, code, endonym, endonym, "unknown", scripts)
    _BY_CODE[code.lower()] = _ADDED[code] = entry
    return entry


def added_languages() -> dict[str, str]:
    """Codes and endonyms of `add_language`, for the identity of runs."""
    return {code: entry.endonym for code, entry in _ADDED.items()}


def _suggestion(key: str) -> str:
    names = {
        name.lower(): entry for entry in LANGUAGES.values() for name in (entry.name, entry.endonym)
    }
    close = difflib.get_close_matches(key, [*names, *_BY_CODE], n=3, cutoff=0.5)
    entries = dict.fromkeys(names.get(match) or _BY_CODE[match] for match in close)
    if not entries:
        return "use an ISO 639-1, ISO 639-3 or FLORES-200 code such as sw, swa or swh_Latn"
    return "did you mean " + " or ".join(f"{entry.code} ({entry.name})" for entry in entries) + "?"
