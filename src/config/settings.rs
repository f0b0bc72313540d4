//! The one table of settings: flag `--name`, variable `HASHWATT_NAME`, key `name` in `unit.toml`.

/// What a setting is.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    /// Empty when nothing is set by default.
    pub default: &'static str,
    /// What a value looks like; empty for true/false settings.
    pub shape: &'static str,
    pub help: &'static str,
    pub secret: bool,
    /// May be given more than once.
    pub many: bool,
}

const fn setting(
    name: &'static str,
    default: &'static str,
    shape: &'static str,
    help: &'static str,
) -> Setting {
    Setting { name, default, shape, help, secret: false, many: false }
}

/// Names are vLLM's where the meaning is the same.
pub static SETTINGS: &[Setting] = &[
    setting("config", "", "FILE", "A unit.toml with settings; keys are the flags' names"),
    setting("host", "127.0.0.1", "ADDRESS", "Address to listen on; any other than loopback wants an API key"),
    setting("port", "8000", "PORT", "Port to listen on; 0 takes a free one"),
    Setting {
        many: true,
        ..setting(
            "model",
            "demo",
            "[NAME=]MODEL",
            "demo, synthetic:PRESET, a GGUF file, a folder with config.json and safetensors, or ORG/NAME[@REVISION][:FILE.gguf] of the hub; more than once for encoders beside it",
        )
    },
    setting(
        "served-model-name",
        "",
        "NAME,…",
        "Names clients use for the (first) model; the first is the one answered with",
    ),
    setting(
        "max-model-len",
        "",
        "TOKENS",
        "Longest prompt plus completion; the model's own context by default, of LongRoPE the one of its short factors",
    ),
    setting(
        "max-num-seqs",
        "auto",
        "N",
        "Sequences in one step at most; auto is 64 on a processor and 256 on GPUs",
    ),
    setting(
        "max-num-batched-tokens",
        "auto",
        "TOKENS",
        "Tokens in one step at most, longer prompts are prefilled in chunks; auto is 512 on a processor and 2048 on GPUs",
    ),
    setting("dtype", "auto", "TYPE", "auto (as stored), float32, float16 or bfloat16"),
    setting(
        "quantization",
        "",
        "TYPE",
        "Weights are rounded when they are loaded: fp8 (matrices of layers), or q8_0, q6_k, q5_k, q4_k and GGUF's others (all matrices); as stored by default",
    ),
    setting(
        "kv-cache-dtype",
        "auto",
        "TYPE",
        "Keys and values as auto (the type of the activations), fp8 (e4m3: half of bfloat16) or q8 (8 bits and a scale for each head of a token: about half, and nearer than fp8)",
    ),
    setting(
        "device",
        "auto",
        "DEVICES",
        "auto (all GPUs, else the CPU), cpu, cuda, cuda:0,2, or cpu,cpu for two engines",
    ),
    setting("threads", "", "N", "Threads of all devices together; every core by default"),
    setting(
        "kv-memory",
        "",
        "BYTES",
        "Memory for the KV cache, as 2GiB; worked out from what is free by default",
    ),
    setting(
        "gpu-memory-utilization",
        "0.9",
        "SHARE",
        "Share of a GPU's memory to fill: weights, workspace, KV cache",
    ),
    setting("enable-prefix-caching", "true", "", "Reuse the computed blocks of prompts that begin alike"),
    setting(
        "speculative",
        "none",
        "none|prompt-lookup",
        "Guess tokens from what the prompt and the answer have said before; answers are the same (on GPUs with --batch-invariant), and come sooner where they quote",
    ),
    setting(
        "draft-model",
        "",
        "MODEL",
        "Guess tokens with this smaller model, which has the same tokenizer; answers are the same (on GPUs with --batch-invariant)",
    ),
    setting(
        "num-speculative-tokens",
        "16",
        "N",
        "Tokens guessed in a step at most, of all sequences together: each is a row more that is computed",
    ),
    setting(
        "async-scheduling",
        "auto",
        "auto|true|false",
        "Launch a step before the last one's tokens are read; auto does so on GPUs",
    ),
    setting(
        "batch-invariant",
        "false",
        "",
        "On GPUs: a request's tokens do not depend on who shares its steps (slower; the CPU always does so)",
    ),
    setting("enforce-eager", "false", "", "On GPUs: launch each operation, capture no graphs"),
    setting(
        "enable-pdl",
        "false",
        "",
        "On GPUs from Hopper on: let a kernel start before the last has ended (programmatic dependent launch)",
    ),
    setting("max-queue", "512", "N", "Requests an engine takes beyond --max-num-seqs; more are answered 503"),
    Setting {
        secret: true,
        ..setting("api-key", "", "KEY", "Bearer key that guards everything but the health routes")
    },
    setting(
        "state-dir",
        "",
        "DIR",
        "Folder of keys and usage; $XDG_STATE_HOME/hashwatt by default, else ~/.local/state/hashwatt",
    ),
    setting(
        "metrics",
        "auto",
        "open|key|admin-only",
        "Who may read /metrics on the serving port; auto is open on loopback and key elsewhere",
    ),
    setting(
        "admin-listen",
        "auto",
        "unix:PATH|HOST:PORT,…",
        "Where keys, usage and backups are asked for; auto is a socket of this user's, and 127.0.0.1:8001 if free; none",
    ),
    Setting {
        secret: true,
        ..setting(
            "admin-token",
            "",
            "TOKEN",
            "What an admin listener on a port wants; made and printed at start by default",
        )
    },
    setting("insecure", "false", "", "Listen to other machines without an API key"),
    setting(
        "reasoning-parser",
        "auto",
        "auto|none",
        "auto tells a model's thoughts apart where its chat template marks them; none leaves them in the text",
    ),
    setting(
        "tool-call-parser",
        "auto",
        "DIALECT",
        "How the model writes calls of tools: auto (as its chat template shows), none, hermes, llama3_json, mistral, phi4_mini_json or openai",
    ),
    setting("ssl-certfile", "", "FILE", "Certificate chain in PEM: serves https; read again on SIGHUP"),
    setting("ssl-keyfile", "", "FILE", "The certificate's key in PEM"),
    setting("allowed-hosts", "", "NAME,…", "Names in Host that are answered; any by default"),
    setting(
        "allowed-origins",
        "",
        "ORIGIN,…",
        "Origins whose pages may call from a browser (CORS), * for any; by default none but its own",
    ),
    setting("unknown-parameters", "refuse", "refuse|warn", "What a request field the API does not know gets"),
    setting("max-body-bytes", "8MiB", "BYTES", "Largest request body"),
    setting("max-connections", "8192", "N", "Open connections at most"),
    setting("header-timeout", "10s", "TIME", "For a client to send a request's head"),
    setting("body-timeout", "60s", "TIME", "For a client to send a request's body"),
    setting("idle-timeout", "75s", "TIME", "A connection may be idle between requests"),
    setting("write-timeout", "60s", "TIME", "A client may take nothing of its answer before it is let go"),
    setting("keep-alive-interval", "10s", "TIME", "A stream with nothing to say sends a comment this often"),
    setting(
        "step-timeout",
        "auto",
        "TIME",
        "An engine that gives no sign of life for so long is taken out; auto is 60s on GPUs and 15min on a processor",
    ),
    setting("drain-timeout", "30s", "TIME", "For running requests to end after SIGTERM"),
    setting("vllm-metrics", "true", "", "Metrics under vLLM's names too"),
    setting(
        "meter",
        "auto",
        "METER",
        "auto, nvml, rapl, http:URL#PATH, declared:IDLE,FULL (watts), assumed, or replay:FILE",
    ),
    setting("require-measured", "false", "", "Refuse watts that are declared, assumed or replayed"),
    setting("models-dir", "", "DIR", "Folder of checkpoints that `hashwatt models` lists"),
    setting("log-level", "info", "FILTER", "error, warn, info, debug, trace, or a tracing filter"),
    setting("log-format", "text", "text|json", "Log lines for people or for machines"),
];

pub fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|s| s.name == name)
}
