"""The error tree. Each class states what the caller does about it.

    NearlineError
    ├── TransientError          retry: pause, keep the offset, try again; never dead-letter
    │   ├── KafkaUnavailable
    │   ├── StoreUnavailable
    │   ├── StoreChanged        retry after dropping the cache and rewinding to the marker
    │   ├── FreezeChanged       retry after looking whether rows are frozen
    │   ├── UnknownSchema       the registry may learn the id
    │   └── RegistryUnavailable
    ├── RecordError             dead-letter: this record can never be applied
    │   ├── UndecodableRecord
    │   └── InvalidEvent
    ├── StaleActivation         load the named generation, redo the batch
    ├── GenerationError         keep the old generation, report
    ├── HaltError               stop and wait for an operator's verb
    │   ├── Halted              the same, found in the store at start
    │   └── (viewers) BadState  a stored viewer that this program cannot read
    └── UserError               crash with exit status 2: settings, arguments, files
        ├── SettingsError
        ├── ContractError       a schema or a manifest that its readers could not read
        └── DataError           a file with bad content: says file and line

Foreign exceptions are translated once, at the edge (`runtime/kafka.py`, `viewers/redis_store.py`, `embeddings/`),
and stay chained as the cause. A message says what was wrong, where, and what to do.
"""


class NearlineError(Exception):
    """Root of everything this program raises on purpose."""


class TransientError(NearlineError):
    """Retry: nothing is wrong with the data; pause without passing the offset."""


class KafkaUnavailable(TransientError):
    """The broker did not answer in time or refused the connection."""


class StoreUnavailable(TransientError):
    """The store did not answer in time, is out of memory, or cannot write its log."""


class StoreChanged(TransientError):
    """The server's identity or the marker is not what this process last saw: drop the cache, rewind to the marker."""


class FreezeChanged(TransientError):
    """Rows were frozen, or follow the plays again, since this process last looked: look again, redo the batch."""


class UnknownSchema(TransientError):
    """The registry does not know this schema yet. `schema`: its id, its GUID, or None: no schema of the registry was read yet."""

    def __init__(self, message: str, schema: int | bytes | None = None) -> None:
        super().__init__(message)
        self.schema = schema


class RegistryUnavailable(TransientError):
    """The schema registry's server did not answer, refused, or is none."""


class RecordError(NearlineError):
    """Dead-letter: no retry can make this record applicable."""


class UndecodableRecord(RecordError):
    """The bytes are not one canonical value of an allowed schema."""


class InvalidEvent(RecordError):
    """The event decodes but breaks the contract (ids, times, kind, key)."""


class StaleActivation(NearlineError):
    """A write carried an activation older than the stored one: load `stored_activation`, redo the batch."""

    def __init__(self, stored_activation: int) -> None:
        super().__init__(
            f"the store already holds rows of activation {stored_activation}; load that generation and redo the batch"
        )
        self.stored_activation = stored_activation


class GenerationError(NearlineError):
    """A generation that fails a check is refused; the one in force stays."""


class HaltError(NearlineError):
    """Going on would be wrong; a person decides. The message names the verb that clears it."""


class Halted(HaltError):
    """Somebody halted this stream earlier, and nobody has cleared it."""


class UserError(NearlineError):
    """What the person asked cannot be done as asked."""


class SettingsError(UserError):
    """A setting is missing, unknown or out of range."""


class ContractError(UserError):
    """A contract file is malformed or incompatible with what is in use."""


class DataError(UserError):
    """A data file has content that cannot be used; says file and line."""
