"""Refusals: whether a text declines to help, in the first person, as assistants do; in six languages.

A refusal of something named ("I can't help with the move on Saturday") is content, one of "that" or "your request" is
the teacher's own. All patterns are bounded and are searched in a text with single spaces and straight apostrophes.
"""

import re

_CANNOT = (
    r"(?:can(?:no|')t|can not|am unable to|'m unable to|am not able to|'m not able to|will not|won't(?: be able to)?)"
)
_THAT = (
    r"(?:this|that|these|such|your|the) ?(?:request|question|task|topic|query|requests|questions|information|content)?"
)
_END = r"(?= ?(?:[.!,;:]|$)| because| as | at this time| right now)"
_AI = r"(?:AI|artificial intelligence|(?:large )?language model|AI language model)(?: model| assistant)?"
_GERMAN = (
    r"(?:dir|ihnen|euch|dabei|damit|hierbei|leider|das|diese[r]? (?:anfrage|frage|bitte)|ihre[r]? (?:anfrage|frage))"
)
_GERMAN_HELP = r"(?:helfen|weiterhelfen|unterst\u00fctzen|beantworten|erf\u00fcllen|nachkommen)"

PHRASES = (
    # English
    rf"\bI ?{_CANNOT} (?:help|assist|comply|engage)(?: you)?(?: (?:with|in|on|to) {_THAT})?{_END}",
    rf"\bI ?{_CANNOT} (?:fulfill?|answer|process|complete|provide|generate|create|produce|discuss) {_THAT}{_END}",
    rf"\bas an? {_AI},? (?:and |so )?I ?(?:{_CANNOT}|don't|do not|have no|must|am not|'m not)",
    r"\bas an? (?:AI|large) language model\b",
    r"\bI (?:must|have to)(?: respectfully)? decline (?:this|that|your) request\b",
    r"\b(?:against|violates?) my (?:guidelines|programming|safety guidelines|content polic(?:y|ies))\b",
    r"\bI(?:'m| am) not (?:allowed|permitted|programmed|comfortable) (?:to |with )?"
    rf"(?:help|assist|answer|fulfill?|provide|creat|generat|writ)\w* ?(?:ing )?(?:with )?{_THAT}",
    # German
    rf"\b(?:kann|darf) ich (?:{_GERMAN} ){{0,4}}nicht {_GERMAN_HELP}\b",
    rf"\bich (?:kann|darf) (?:{_GERMAN} ){{1,4}}nicht {_GERMAN_HELP}\b",
    r"\bals (?:KI|k\u00fcnstliche intelligenz|sprachmodell|KI-(?:sprach)?modell|KI-assistent)"
    r"(?: (?:kann|darf|habe|bin)\b|, )",
    # French
    r"\bje ne (?:peux|puis) (?:malheureusement )?pas (?:vous |t')?(?:aider|assister|r\u00e9pondre|satisfaire)"
    rf"(?: (?:\u00e0|avec|pour|sur) (?:cela|\u00e7a|ceci|(?:cette|votre) (?:demande|question|requ\u00eate)))?{_END}",
    r"\ben tant qu(?:'|e )(?:IA\b|intelligence artificielle|assistant IA|mod\u00e8le (?:de langage|linguistique))",
    # Spanish
    r"\bno puedo (?:ayudarte|ayudarle|ayudar|asistirte|asistirle|responder|cumplir|atender)"
    rf"(?: (?:con|a) (?:eso|esto|(?:esa|esta|su|tu) (?:solicitud|petici\u00f3n|pregunta)))?{_END}",
    r"\bcomo (?:una? )?(?:modelo de lenguaje|IA\b|inteligencia artificial|asistente de IA)",
    # Italian
    r"\bnon posso (?:aiutarti|aiutarla|aiutare|assisterti|assisterla|rispondere|soddisfare)"
    rf"(?: (?:con|in|a) (?:questo|ci\u00f2|quest[ao] (?:richiesta|domanda|compito)))?{_END}",
    r"\b(?:in quanto|come) (?:IA\b|intelligenza artificiale|modello (?:linguistico|di linguaggio)|assistente IA)",
    # Portuguese
    r"\bn\u00e3o posso (?:te )?(?:ajudar|ajud\u00e1-l[oa]|ajudar voc\u00ea|atender|responder|cumprir)"
    rf"(?: (?:com|a) (?:isso|isto|ess[ae] (?:pedido|solicita\u00e7\u00e3o|pergunta)|seu pedido))?{_END}",
    r"\bcomo (?:um |uma )?(?:modelo de linguagem|intelig\u00eancia artificial|assistente de IA)",
)
REFUSAL = re.compile("|".join(PHRASES), re.IGNORECASE)


def find_refusal(text: str) -> str | None:
    """The words with which a text declines; None where it does not."""
    said = REFUSAL.search(" ".join(text.replace("\u2019", "'").split()))
    return said.group() if said else None
