"""Word lists of the feature pass. A word may stand in several; each list becomes one count.

The words are bytes in lower case, exactly as `router.complexity.features` cuts a text.
"""

from __future__ import annotations

# Order matters: the place of a list is the place of its count among the features, and fitted weights refer to it.
LISTS: dict[str, str] = {
    "negation": """not no never none neither nor except cannot least false incorrect untrue unlikely without isn doesn
        don didn""",
    "wh": "what which who whom whose when where",
    "why_how": "why how",
    "compute": "calculate compute find determine evaluate solve estimate simplify convert derive minimum maximum",
    "reason": """prove proof explain justify argue analyse analyze analysis compare contrast critique evaluate
        discuss describe assess interpret infer conclude imply implies therefore hence thus because
        beweise vergleiche analysiere erkläre démontrez analysez comparez expliquez demuestra
        analiza compara explica""",
    "condition": "if suppose assume assuming given let unless whether provided when then would could should might",
    "quantity": """each every per total altogether combined remaining left many much more less fewer most sum
        difference average ratio""",
    "number_word": """one two three four five six seven eight nine ten eleven twelve dozen hundred thousand million first
        second third""",
    "fraction": "half twice double triple third thirds quarter quarters fourth percent times percentage fraction",
    "money": """dollar dollars cent cents price cost costs pay paid pays buy bought buys sell sold earns earned
        money spend spent bill""",
    "time": """hour hours minute minutes day days week weeks month months year years morning yesterday tomorrow
        monday daily weekly""",
    "unit": """kg km cm mm meters metre meter feet foot inches inch miles mile pounds pound grams liters gallons
        degrees volts volt amperes ohms watts joules hz mol atm kpa psi mph newton kelvin""",
    "person": "he she his her him they them their i my me we our you your",
    "male_female": """man woman boy girl mother father wife husband son daughter mr mrs patient client child children
        friend""",
    "law": """court law legal statute plaintiff defendant contract tort liability liable jury trial appeal
        constitutional amendment convicted crime criminal felony murder burglary robbery evidence
        hearsay testimony attorney lawyer landowner deed conveyed easement mortgage tenant lease
        buyer seller breach damages negligence prosecution indicted jurisdiction congress treaty
        convention tribunal sovereignty ordinance probable warrant counsel sued sues suit clause
        judge vertrag klage gesetz haftung tribunal contrat""",
    "medicine": """patient disease symptoms diagnosis treatment clinical blood pain syndrome infection physician
        hospital therapy drug dose medication cancer tumor chronic acute artery vein lung liver
        kidney heart muscle nerve bone vaccine virus bacteria fever surgery examination mg serum
        lesion anemia diabetes hypertension pregnancy nutrition vitamin dietary protein gland
        hormone insulin ml mmhg cells tissue diagnose patienten krankheit maladie symptom muscles
        spinal brain""",
    "biology": """cell cells gene genes dna rna protein species evolution organism organisms enzyme population allele
        chromosome plant plants animals membrane photosynthesis mitosis bacteria selection genetic
        offspring ecosystem""",
    "chemistry": """reaction acid base solution compound molecule molecules atom atoms electron electrons bond ion ions
        oxidation equilibrium molar gas hydrogen oxygen carbon sodium chloride enthalpy entropy
        catalyst ph concentration moles element""",
    "physics": """force velocity acceleration mass energy momentum charge electric magnetic field wave wavelength
        frequency light current voltage resistance circuit particle gravity pressure temperature
        heat friction spring lens photon nuclear""",
    "maths": """equation function integral derivative polynomial matrix vector theorem prime integer integers real
        root roots group ring subgroup ideal graph probability random variable triangle circle angle
        square rectangle area perimeter radius slope line points set sets mean median variance
        standard deviation continuous differentiable log sin cos tan sqrt isomorphic modulo
        divisible digits digit coefficient sequence series geometric arithmetic""",
    "logic": """premise premises argument conclusion valid invalid fallacy logic predicate proposition truth table
        formula implication deduction syllogism ponens symbolization""",
    "computer": """algorithm program code function array string list data memory network server software computer
        operating system database protocol encryption security bit bits byte bytes processor cache
        java python sql api compiler binary recursion stack queue tree hash loop html javascript css
        docker linux regex class method typescript kernel thread""",
    "learning": """training classifier regression neural gradient overfitting bayesian supervised kernel clustering
        layers""",
    "engineering": """beam stress load shear torque pump turbine motor transformer amplifier antenna pipe flow conductor
        diode steel""",
    "economics": """demand supply market price inflation interest rate monetary fiscal gdp unemployment elasticity
        consumer firm monopoly tax taxes tariff bank reserve money goods income wage economy
        economic equilibrium trade""",
    "business": """company firm management manager marketing customers customer employees organization stakeholders
        product brand strategy corporate audit accounting asset assets liabilities revenue
        depreciation stock shareholders dividend bond bonds sales income tax net profit investment""",
    "psychology": """behavior behaviour cognitive learning memory anxiety depression therapy therapist conditioning
        personality attachment perception motivation freud piaget skinner stimulus self emotional
        counselor psychologist test reinforcement development schizophrenia""",
    "society": """social society culture gender race class family community government political state policy
        president election voters party democracy war military states nations international treaty
        security senate federal power rights vote""",
    "history": """century empire king revolution war colonies colonial ancient roman medieval church slavery treaty
        soviet british french civilization dynasty archaeological homo neolithic settlement trade
        bce ce ruler pottery""",
    "moral": """moral morally wrong right ethics ethical virtue duty kant utilitarian utilitarianism justice argue
        argues according philosopher belief knowledge god""",
    "religion": """god bible christian jewish islam muslim buddhist hindu jesus church prophet temple sacred ritual
        torah quran""",
    "scenario": "scenario scenarios ordinary standards",
    "statement": "statement statements true false following correct best describes",
    "science_common": "earth moon sun planet star stars water rock rocks ocean weather climate soil energy ice air",
    "trivia": """film movie song album band singer actor actress novel author book series tv show won award city
        country capital river born played wrote named name called famous olympic cup team league
        sang sings""",
    "code_word": """def return import print none elif lambda async await const var void int str bool null struct enum
        static""",
    "write_code": """write implement refactor debug script snippet test tests unittest bug stacktrace exception compile
        function""",
    "translate": """translate translation übersetze übersetzen traduis traduire traduisez traduce traducir english
        german french spanish italian chinese japanese portuguese russian deutsch français español
        ins auf""",
    "extract": """extract summarize summarise summary list bullet json table fields csv classify label categorize
        rewrite paraphrase headline keywords entities zusammenfassung résume resume""",
    "chat": "hi hello hey thanks thank please ok okay bye sorry great hallo danke bonjour merci hola gracias bitte lol",
    "creative": """story poem essay blog tweet email letter article slogan joke haiku imagine roleplay character
        dialogue""",
    "function": """the a an of to in and is are was were be been by for on with as at from that this these those it its
        or but has have had will can may do does""",
    "degree": "very highly significantly approximately exactly closely primarily generally usually typically mostly",
    "superlative": "best most greatest largest highest lowest smallest main primary major strongest main likely",
    "blank": "____ _____ ______ _______",
    "roman": "ii iii iv",
}
NAMES: tuple[str, ...] = tuple(LISTS)
BITS = 16
"""A capped text has fewer than 2**BITS words, so no count runs over into its neighbour; struct's `H` reads a field."""


def classes() -> tuple[dict[bytes, int], tuple[int, ...]]:
    """Every word's class, from 1 on (words on the same lists are of one class, so that it fits a byte), and by class a one in the
    field of each list: these times the words of the class, summed up, are all counts at once.
    """
    lists: dict[bytes, int] = {}
    for place, words in enumerate(LISTS.values()):
        for word in set(words.split()):
            key = word.encode()
            lists[key] = lists.get(key, 0) + (1 << (BITS * place))
    combined = (0, *sorted(set(lists.values())))
    numbers = {fields: number for number, fields in enumerate(combined)}
    return {word: numbers[fields] for word, fields in lists.items()}, combined
