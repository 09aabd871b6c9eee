//go:build linux

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Client is a Node that asks the Server at a socket. Every call is a connection
// of its own.
type Client struct {
	Path string // of the socket
}

var _ Node = (*Client)(nil)

// dataSize is how much of an image a frame carries, in bytes.
const dataSize = 256 << 10

// call asks, and gives the answers to each.
func (c *Client) call(ctx context.Context, verb string, args any, data io.Reader, each func([]byte) error) error {
	err := c.exchange(ctx, verb, args, data, each)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (c *Client) exchange(ctx context.Context, verb string, args any, data io.Reader, each func([]byte) error) error {
	a, err := json.Marshal(args)
	if err != nil {
		return err
	}
	q, err := json.Marshal(request{Verb: verb, Caller: Caller(ctx), Args: a})
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.Path)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// A server that refuses may be done before it has read the request.
	if err := writeFrame(conn, kindRequest, q); err != nil && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	sent := make(chan error, 1)
	if data != nil {
		go func() {
			err := sendData(conn, data)
			sent <- err
			if err != nil {
				conn.Close()
			}
		}()
	}
	for {
		kind, payload, err := readFrame(conn)
		if err != nil {
			select {
			case e := <-sent:
				if e != nil {
					return e
				}
			default:
			}
			return fmt.Errorf("%w: %s: %w", ErrUnreachable, verb, err)
		}
		switch kind {
		case kindMessage:
			if err := each(payload); err != nil {
				return err
			}
		case kindError:
			return decodeError(payload)
		case kindDone:
			return nil
		default:
			return fmt.Errorf("%w: answer %q to %s, want M, E or Z", ErrProtocol, kind, verb)
		}
	}
}

func sendData(conn net.Conn, data io.Reader) error {
	buf := make([]byte, dataSize)
	for {
		n, err := data.Read(buf)
		if n > 0 {
			if err := writeFrame(conn, kindData, buf[:n]); err != nil {
				return nil // the server has enough; it says why
			}
		}
		if errors.Is(err, io.EOF) {
			_ = writeFrame(conn, kindFinish, nil)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// nothing is the arguments of a verb that takes none.
type nothing struct{}

// one asks for exactly one answer.
func one[R any](ctx context.Context, c *Client, verb string, args any) (R, error) {
	var r R
	n := 0
	err := c.call(ctx, verb, args, nil, func(payload []byte) error {
		n++
		return json.Unmarshal(payload, &r)
	})
	if err == nil && n != 1 {
		err = fmt.Errorf("%w: %d answers to %s, want one", ErrProtocol, n, verb)
	}
	return r, err
}

// none asks for no answer.
func (c *Client) none(ctx context.Context, verb string, args any) error {
	return c.call(ctx, verb, args, nil, func([]byte) error {
		return fmt.Errorf("%w: an answer to %s, want none", ErrProtocol, verb)
	})
}

// all asks for any number of answers.
func all[R any](ctx context.Context, c *Client, verb string, args any, data io.Reader, send func(R) error) error {
	return c.call(ctx, verb, args, data, func(payload []byte) error {
		var r R
		if err := json.Unmarshal(payload, &r); err != nil {
			return err
		}
		return send(r)
	})
}
