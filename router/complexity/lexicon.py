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
        constitutional amendment convicted crime criminal felony murder burglary robbery evidence hearsay testimony
        attorney lawyer landowner deed conveyed easement mortgage tenant lease buyer seller breach damages negligence
        prosecution indicted jurisdiction congress treaty convention tribunal sovereignty ordinance probable warrant
        counsel sued sues suit clause judge vertrag klage gesetz haftung tribunal contrat appellant appellee defendants
        plaintiffs injunction statutory common prosecutor acquitted guilty verdict sentencing magistrate judicial
        judiciary enforceable rescind consideration offeror offeree assignee grantor grantee devise devised heirs
        trustee lessee lessor zoning covenant servitude trespass nuisance battery assault manslaughter larceny arson
        conspiracy accomplice admissible inadmissible objection sustain overruled interrogation miranda search seizure
        fourth fifth fourteenth amendments equal protection due process commerce supremacy legislation legislature
        enacted unconstitutional supreme circuit district lawsuit litigation legally unlawful lawful rights dispute
        arbitration ratified jurists jurisprudence positivism""",
    "medicine": """patient disease symptoms diagnosis treatment clinical blood pain syndrome infection physician
        hospital therapy drug dose medication cancer tumor chronic acute artery vein lung liver kidney heart muscle
        nerve bone vaccine virus bacteria fever surgery examination mg serum lesion anemia diabetes hypertension
        pregnancy nutrition vitamin dietary protein gland hormone insulin ml mmhg cells tissue diagnose patienten
        krankheit maladie symptom muscles spinal brain disorder diagnosed year old presents pregnant infant newborn
        pediatric nurse nursing clinic emergency prescribed antibiotic antibiotics hepatitis hiv aids influenza
        tuberculosis pneumonia asthma stroke seizure seizures fracture tendon ligament joint knee abdomen abdominal
        chest renal hepatic cardiac pulmonary vascular venous urinary urine bladder uterus ovarian testosterone estrogen
        thyroid pituitary adrenal cortisol glucose cholesterol obesity calories carbohydrate carbohydrates fats fatty
        fiber iron zinc deficiency immune antibody antibodies antigen inflammation inflammatory congenital genetic
        mutation inherited autosomal recessive dominant palsy paralysis nausea vomiting diarrhea rash edema hemoglobin
        leukocyte platelets biopsy mri ct exam cranial sensory motor reflex mortality epidemic aging elderly older
        sexual sex contraceptive hospice""",
    "biology": """cell cells gene genes dna rna protein species evolution organism organisms enzyme population allele
        chromosome plant plants animals membrane photosynthesis mitosis bacteria selection genetic
        offspring ecosystem""",
    "chemistry": """reaction acid base solution compound molecule molecules atom atoms electron electrons bond ion ions
        oxidation equilibrium molar gas hydrogen oxygen carbon sodium chloride enthalpy entropy catalyst ph
        concentration moles element titration molarity molality mol mole valence oxidized reduced isotope isomer polymer
        alkane alkene benzene ester aldehyde ketone amine alcohol ethanol methane acetic hydrochloric sulfuric nitrate
        nitrogen chlorine bromine iodine copper zinc silver calcium magnesium aluminum potassium ammonia peroxide
        precipitate solubility soluble buffer pka exothermic endothermic gibbs stoichiometric reagent distillation
        volatile electrolysis covalent ionic orbital nmr spectrum oxide hydroxide sulfate carbonate phosphate kcal kj
        reactants products yield aqueous""",
    "physics": """force velocity acceleration mass energy momentum charge electric magnetic field wave wavelength
        frequency light current voltage resistance circuit particle gravity pressure temperature heat friction spring
        lens photon nuclear newton newtons joule joules meter meters collision projectile orbit satellite pendulum
        oscillation harmonic diffraction interference refraction refractive polarized doppler laser telescope mirror
        focal capacitor inductor solenoid coulomb tesla kelvin thermodynamic adiabatic isothermal entropy carnot
        isotropic relativistic quantum eigenvalue hamiltonian boson fermion neutron proton electron nucleus radioactive
        decay half life galaxy redshift angular rotational torque incline pulley buoyant viscosity gravitational
        accelerated speed moving moves cm kg watt watts volts volt amperes ohm ohms hertz ev mev""",
    "maths": """equation function integral derivative polynomial matrix vector theorem prime integer integers real root
        roots group ring subgroup ideal graph probability random variable triangle circle angle square rectangle area
        perimeter radius slope line points set sets mean median variance standard deviation continuous differentiable
        log sin cos tan sqrt isomorphic modulo divisible digits digit coefficient sequence series geometric arithmetic
        abelian homomorphism eigenvalues eigenvector determinant bijective injective surjective cosets permutation
        permutations combinations binomial converges diverges convergence limit supremum compact metric topology
        topological hausdorff differential laplace fourier vertices edges parabola hyperbola ellipse quadratic cubic
        numerator denominator remainder factorial perpendicular parallel hypotenuse isosceles logarithm asymptote domain
        multiples factor factors odd even positive negative expression value values x y n f""",
    "logic": """premise premises argument conclusion valid invalid fallacy logic predicate proposition truth table
        formula implication deduction syllogism ponens symbolization""",
    "computer": """algorithm program code function array string list data memory network server software computer
        operating system database protocol encryption security bit bits byte bytes processor cache java python sql api
        compiler binary recursion stack queue tree hash loop html javascript css docker linux regex class method
        typescript kernel thread bandwidth packet tcp ip http router malware firewall attacker buffer overflow
        vulnerability exploit password encrypted cipher virtual threads process processes scheduler semaphore deadlock
        page paging disk ram cpu register registers instruction instructions pipeline bus assembly pointer pointers
        variable variables integer float boolean object objects inheritance polymorphism recursive sort sorting sorted
        heap graph vertex adjacency np complete turing automaton grammar regular parser sets computers internet web
        browser user file files script""",
    "learning": """training classifier regression neural gradient overfitting bayesian supervised kernel clustering
        layers classification svm perceptron layer backpropagation epoch dropout cluster k means pca variance bias
        likelihood posterior prior markov entropy feature features dataset label labels validation cross ensemble
        bagging boosting convolutional transformer hyperparameter regularization sigmoid relu""",
    "engineering": """beam stress load shear torque pump turbine motor transformer amplifier antenna pipe flow conductor
        diode steel reynolds laminar turbulent nozzle compressor boiler condenser refrigerant rankine otto enthalpy btu
        lbm lbf psia psi rpm kw kva hp horsepower steam conduction convection conductivity fluid viscosity manometer
        orifice weir girder truss bending deflection modulus yield strain tensile compressive concrete reinforced bolt
        weld shaft bearing gear impedance phase armature winding stator rotor induction synchronous generator alternator
        transistor collector emitter gain decibel db modulation bandwidth signal controller feedback filter resistor
        capacitance inductance reactance ft lb slug duct valve tank diameter insulation""",
    "economics": """demand supply market price inflation interest rate monetary fiscal gdp unemployment elasticity
        consumer firm monopoly tax taxes tariff bank reserve money goods income wage economy economic equilibrium trade
        aggregate macroeconomic microeconomic keynesian multiplier deficit surplus quantity marginal oligopoly
        monopolist monopolistic competitive perfectly substitutes complements currency exchange imports exports export
        import quota labor wages recession expansionary contractionary curve shift output productivity utility
        consumption investment savings ols autocorrelation heteroscedasticity regression econometric""",
    "business": """company firm management manager marketing customers customer employees organization stakeholders
        product brand strategy corporate audit accounting asset assets liabilities revenue depreciation stock
        shareholders dividend bond bonds sales income tax net profit investment invoice discount annual annually
        interest principal note notes premium maturity loan loans mortgage annuity payable receivable inventory retailer
        wholesale merchant markup commission salary payroll partner partnership corporation shares par preferred common
        earnings dividends budget overhead ledger journal balance auditor entrepreneur leadership managers subordinate
        hiring recruitment supply chain logistics pricing segment segmentation advertising promotion campaign retailers
        consumers brands ethics csr stakeholder governance""",
    "psychology": """behavior behaviour cognitive learning memory anxiety depression therapy therapist conditioning
        personality attachment perception motivation freud piaget skinner stimulus self emotional counselor psychologist
        test reinforcement development schizophrenia psychologists psychological counseling client clients cognition
        emotion emotions mood disorder disorders psychotherapy psychoanalysis psychoanalytic conditioned unconditioned
        operant classical reinforcer hippocampus amygdala cortex neurotransmitter dopamine serotonin sleep dream dreams
        iq intelligence adolescent adolescents infancy children attitudes attitude conformity obedience aggression
        bystander attribution erikson rogers maslow jung validity reliability correlation participants subjects""",
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
