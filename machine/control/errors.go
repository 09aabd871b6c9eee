//go:build linux

package control

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
)

// What errors wrap that keep their meaning over the socket.
var (
	ErrUnimplemented = errors.New("this node cannot do that")
	ErrInvalid       = errors.New("invalid request")
	ErrState         = errors.New("not in the node's present state")
	ErrBusy          = errors.New("the node is busy")
	ErrProtocol      = errors.New("control protocol")
	ErrUnreachable   = errors.New("PID 1 does not answer")
)

// remote is an error of the other side.
type remote struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	kind    error
}

func (e *remote) Error() string { return e.Message }

func (e *remote) Unwrap() error { return e.kind }

// A code is an error's meaning on the wire.
type code struct {
	name string
	err  error
}

func codes() []code {
	return []code{
		{"unimplemented", ErrUnimplemented},
		{"invalid", ErrInvalid},
		{"state", ErrState},
		{"busy", ErrBusy},
		{"protocol", ErrProtocol},
		{"not-found", fs.ErrNotExist},
		{"exists", fs.ErrExist},
		{"denied", fs.ErrPermission},
		{"canceled", context.Canceled},
		{"deadline", context.DeadlineExceeded},
	}
}

// maxMessage is the length that an error's text is cut to, in bytes.
const maxMessage = 64 << 10

func encodeError(err error) []byte {
	e := remote{Code: "failed", Message: err.Error()}
	for _, c := range codes() {
		if errors.Is(err, c.err) {
			e.Code = c.name
			break
		}
	}
	if len(e.Message) > maxMessage {
		e.Message = e.Message[:maxMessage] + "…"
	}
	data, err := json.Marshal(e)
	if err != nil { // strings always marshal
		panic(err)
	}
	return data
}

func decodeError(data []byte) error {
	e := &remote{}
	if err := json.Unmarshal(data, e); err != nil {
		return errors.Join(ErrProtocol, err)
	}
	for _, c := range codes() {
		if c.name == e.Code {
			e.kind = c.err
		}
	}
	return e
}
