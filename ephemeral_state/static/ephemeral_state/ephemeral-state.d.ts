/** One key's value and owner. It never changes, but for the time when it expires: a new value is a new `Entry`. */
export class Entry {
    /**
     * @param {string} key
     * @param {string} owner
     * @param {string} payload base64
     * @param {number | null | undefined} expires
     * @param {View} view
     */
    constructor(key: string, owner: string, payload: string, expires: number | null | undefined, view: View);
    key: string;
    /** The `client_id` of the connection that it belongs to. */
    owner: string;
    /** When it expires, as `Date.now()` counts; null: with its owner's connection; undefined: the server did not say. */
    expires: number | null | undefined;
    /** The payload as the wire has it: base64. */
    payload: string;
    /** The payload as it was sent. */
    get bytes(): Uint8Array<ArrayBufferLike>;
    /** The payload read as JSON; undefined if it is empty or something else. */
    get value(): any;
    /** Whether this page's connection owns it, or a former one of it did. */
    get mine(): boolean;
    /** Whether it may have changed or gone since, because there is no connection; one's own is known. */
    get stale(): boolean;
    /** @param {string} owner @param {string} payload */
    is(owner: string, payload: string): boolean;
    toJSON(): {
        key: string;
        owner: string;
        value: any;
        mine: boolean;
    };
    #private;
}
/** One topic as its frames tell it. Pure: frames in, changes out, the same view whatever way it was told. */
export class View {
    /** @param {string} name @param {Set<string>} [ids] the ids that are one's own @param {() => number} [now] ms */
    constructor(name: string, ids?: Set<string>, now?: () => number);
    /** @type {Map<string, Entry>} */
    entries: Map<string, Entry>;
    /** Whether what is here is true now. */
    live: boolean;
    /** A frame spoke of what this view has never heard of: it needs a snapshot. */
    lost: boolean;
    /** @type {{ entries: Frame[], more: number } | null} a snapshot of which so many sets are still to come */
    partial: {
        entries: Frame[];
        more: number;
    } | null;
    name: string;
    ids: Set<string>;
    now: () => number;
    /**
     * @param {Frame} frame of this topic; unknown ones change nothing
     * @returns {Change[]} what really changed, when all of it has
     */
    apply(frame: Frame): Change[];
    /** @param {Reason} reason @returns {Change[]} */
    forget(reason: Reason): Change[];
    #private;
}
/** The rules of a connection and of what outlives it. Pure but for what it is given: `send`, `now` and the callbacks. */
export class Session {
    /**
     * @param {{ send: (text: string) => void, now?: () => number, change: (name: string, change: Change) => void,
     *   problem: (problem: Problem) => void }} on
     */
    constructor(on: {
        send: (text: string) => void;
        now?: () => number;
        change: (name: string, change: Change) => void;
        problem: (problem: Problem) => void;
    });
    /** @type {Map<string, Line>} */
    lines: Map<string, Line>;
    /** @type {Map<string, Line>} topics that were left, of which the server may still have something of ours */
    left: Map<string, Line>;
    /** @type {Set<string>} */
    ids: Set<string>;
    /** @type {string | null} one's own, of this connection or the last; null if the server does not say */
    clientId: string | null;
    open: boolean;
    now: () => number;
    /** What cannot be a name is denied here, and no server is asked. @param {string} name @param {TopicOptions} [options] */
    follow(name: string, options?: TopicOptions): Line;
    /** Clear what the server may have of ours in the topic, and hear no more of it. @param {string} name */
    leave(name: string): void;
    /** @param {string} name @param {string} key @param {string} payload base64 @param {SetOptions} options */
    set(name: string, key: string, payload: string, { ttl, grace, throttle }: SetOptions): void;
    /** @param {string} name @param {string} key */
    clear(name: string, key: string): void;
    opened(): void;
    closed(): void;
    /** When there is something to send again, in ms; Infinity: there is not. */
    get due(): number;
    /** Send what is due. */
    flush(): void;
    /** @param {Frame} frame @returns {boolean} whether it was one of ours */
    received(frame: Frame): boolean;
    /** All rights have ended: nothing of what was seen may stay. */
    revoked(): void;
    #private;
}
/**
 * One topic, live: `entries` is what everybody in it sees. Made by `EphemeralState.topic`. Its event "status" has the new
 * status as `detail`.
 */
export class Topic extends EventTarget {
    /** @param {string} name @param {EphemeralState} state @param {Session} session @param {TopicOptions} options */
    constructor(name: string, state: EphemeralState, session: Session, options: TopicOptions);
    /** @type {((event: CustomEvent<Status | "denied">) => void) | null} */ onstatus: ((event: CustomEvent<Status | "denied">) => void) | null;
    name: string;
    /** The connection that it belongs to. */
    state: EphemeralState;
    /** @type {ReadonlyMap<string, Entry>} every key that is set now */
    entries: ReadonlyMap<string, Entry>;
    /** As of the whole, and `denied` if you may not follow this topic. @returns {Status | "denied"} */
    get status(): Status | "denied";
    /** Whether `entries` may have changed since: there is no connection. */
    get stale(): boolean;
    /**
     * Set a key, and own it. JSON for any value, bytes for a `Uint8Array` or `ArrayBuffer`, nothing for `undefined`. It is
     * set again after a lost connection, unless somebody else has set it meanwhile.
     * @param {string} key @param {any} [value] @param {SetOptions} [options]
     */
    set(key: string, value?: any, options?: SetOptions): void;
    /** Clear a key that is one's own. @param {string} key */
    clear(key: string): void;
    /**
     * Hear of every change from now on. When it is called, `entries` has all changes of the frame that brought it.
     * @param {(change: Change) => void} listener
     * @returns {() => void} stops it
     */
    subscribe(listener: (change: Change) => void): () => void;
    /** Follow it no more, and clear what is one's own in it. `state.topic(name)` begins anew. */
    leave(): void;
    /**
     * Count one more part of the page that uses it. When the last of them has let go, it is left: not at once, since
     * another may take over.
     * @returns {() => void} lets go, once
     */
    use(): () => void;
    /** @internal Say what the status is, if it is another. */
    _update(): void;
    /** @internal @param {Change} change */
    _tell(change: Change): void;
    /** Every change from now on. A reader that is slow gets the newest change per key. @returns {AsyncGenerator<Change>} */
    [Symbol.asyncIterator](): AsyncGenerator<Change>;
    #private;
}
/**
 * A connection to a server of `django-ephemeral-state`. It begins at once, comes back by itself when it is lost, follows
 * its topics again and sets its own keys again. Events: "status", "error" (`detail` is a `Problem`), and "message" for
 * frames of the application's own (`detail` is what it sent).
 */
export class EphemeralState extends EventTarget {
    /**
     * @param {string | URL} url a path of this site, or a whole address
     * @param {{ WebSocket?: any, protocols?: string | string[], minDelay?: number, maxDelay?: number, random?: () => number }} [options]
     *   `minDelay` and `maxDelay`: ms, the range of the first wait before connecting again and of the longest.
     *   `WebSocket`: another implementation, for Node.
     */
    constructor(url: string | URL, options?: {
        WebSocket?: any;
        protocols?: string | string[];
        minDelay?: number;
        maxDelay?: number;
        random?: () => number;
    });
    /** @type {((event: CustomEvent<Problem>) => void) | null} */ onerror: ((event: CustomEvent<Problem>) => void) | null;
    /** @type {((event: CustomEvent<Status>) => void) | null} */ onstatus: ((event: CustomEvent<Status>) => void) | null;
    /** @type {((event: CustomEvent<any>) => void) | null} */ onmessage: ((event: CustomEvent<any>) => void) | null;
    /** @returns {Status} */
    get status(): Status;
    /** One's own `client_id`; null until a server has said it. */
    get clientId(): string | null;
    /**
     * The topic of this name, the same object for the same name. One whose name is empty or no text is `denied` and stays
     * empty; an option that cannot be is as if left out.
     * @param {string} name @param {TopicOptions} [options]
     */
    topic(name: string, options?: TopicOptions): Topic;
    /** Send a frame of the application's own. @param {any} frame @returns {boolean} whether it could be sent */
    send(frame: any): boolean;
    /** Connect again after `close()`, or now instead of after the wait. */
    connect(): void;
    /** Say goodbye: one's own keys go at once. `connect()` brings them back. */
    close(): void;
    /** @internal Something may have been sent or received: look when there is more to do. */
    _sent(): void;
    /** @internal @param {Topic} topic */
    _left(topic: Topic): void;
    /** @internal @param {Problem} problem */
    _problem(problem: Problem): void;
    #private;
}
/**
 * connecting: nothing was seen yet. live: what `entries` show is true. stale: it was true when the connection was lost,
 * which is being made again. offline: not connected, and not trying until the network, the page or `connect()` is back.
 */
export type Status = "connecting" | "live" | "stale" | "offline";
/**
 * Why an entry went. missed: it went while there was no connection. revoked: you may not see it any more.
 */
export type Reason = "explicit" | "disconnect" | "expired" | "missed" | "revoked";
/**
 * What happened to one key: `entry` is there unless it went, `before` unless it is new.
 */
export type Change = {
    type: "set";
    key: string;
    entry: Entry;
    before?: Entry;
    reason?: undefined;
} | {
    type: "clear";
    key: string;
    entry?: undefined;
    before: Entry;
    reason: Reason;
};
/**
 * What went wrong. `code` is one of the server's, or `unreachable`, `bad_url`, `bad_option`, `bad_server_frame`,
 * `unknown_frame`, `revoked`, `refused_too_often`.
 */
export type Problem = {
    code: string;
    message: string;
    topic?: string;
    key?: string;
    retryAfter?: number;
};
/**
 * `ttl`: seconds the entry lives; without it, as long as this connection. `grace`: seconds it stays when the connection
 * is lost rather than closed. `throttle`: send this key at most once in so many milliseconds, and always the last value.
 */
export type SetOptions = {
    ttl?: number | null;
    grace?: number;
    throttle?: number;
};
/**
 * `maxRate`: frames a second that this topic may cost at most. `subscribe: false`: the server's consumer subscribes
 * this connection by itself.
 */
export type TopicOptions = {
    maxRate?: number;
    subscribe?: boolean;
};
export type Frame = Record<string, any>;
/**
 * What a page wants of one key: sent when there is a connection, and again when there is a new one.
 */
export type Want = {
    op: "set" | "clear";
    payload: string;
    grace: number;
    deadline: number | null;
    due: number;
    confirmed: boolean;
    lost: boolean;
};
/**
 * The server may have something of ours under a key, and not for longer than `until`: so many `sets` were sent and not
 * refused, the last of them with the ref `ref` at the time `at`. `former`: it may be there in the name of a former
 * connection, and no set of this one has been confirmed.
 */
export type Held = {
    sets: number;
    ref: number;
    at: number;
    until: number;
    grace: number;
    former: boolean;
};
/**
 * One topic of a session. `state` is how far this connection is with it. `unsent` are the keys of `wants` that are yet
 * to be sent, none of them before `wake`. `parted`: whether the server was told, or has confirmed, that it is left.
 */
export type Line = {
    view: View;
    options: TopicOptions;
    wants: Map<string, Want>;
    held: Map<string, Held>;
    unsent: Set<string>;
    wake: number;
    sweep: number;
    state: "new" | "asked" | "again" | "live" | "denied";
    due: number;
    plain: boolean;
    seen: boolean;
    parted: "" | "told" | "done";
};
export type Asked = {
    verb: string;
    name: string;
    fields: Frame;
    key?: string;
    want?: Want;
    cost: number;
};
