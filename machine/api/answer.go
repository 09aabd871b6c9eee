//go:build linux

package api

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/kilnhq/kiln/machine/control"
)

// message is a pointer to a protobuf message.
type message[M any] interface {
	*M
	proto.Message
}

// convert turns a value whose JSON has the names of the message M into one.
func convert[M any, P message[M]](v any) (*M, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	m := new(M)
	return m, protojson.Unmarshal(data, P(m))
}

// answer is a verb's answer, or its error as gRPC has them.
func answer[M any, P message[M]](v any, err error) (*M, error) {
	if err != nil {
		return nil, failure(err)
	}
	m, err := convert[M, P](v)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the node's answer: %v", err)
	}
	return m, nil
}

// each returns a function that sends values as messages.
func each[R, M any, P message[M]](send func(*M) error) func(R) error {
	return func(r R) error {
		m, err := convert[M, P](r)
		if err != nil {
			return err
		}
		return send(m)
	}
}

// failure is err with the gRPC code that its meaning has.
func failure(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	for _, k := range []struct {
		err  error
		code codes.Code
	}{
		{control.ErrUnimplemented, codes.Unimplemented},
		{control.ErrInvalid, codes.InvalidArgument},
		{control.ErrState, codes.FailedPrecondition},
		{control.ErrBusy, codes.ResourceExhausted},
		{control.ErrProtocol, codes.Internal},
		{control.ErrUnreachable, codes.Unavailable},
		{fs.ErrNotExist, codes.NotFound},
		{fs.ErrExist, codes.AlreadyExists},
		{fs.ErrPermission, codes.PermissionDenied},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		if errors.Is(err, k.err) {
			code = k.code
			break
		}
	}
	return status.Error(code, err.Error())
}
