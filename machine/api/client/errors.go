package client

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is why a call to a node failed, in words that say what to do.
type Error struct {
	Node    string
	Code    codes.Code
	Message string
}

func (e *Error) Error() string { return e.Node + ": " + e.Message }

// Unwrap returns the file system's error with the same meaning.
func (e *Error) Unwrap() error {
	switch e.Code {
	case codes.NotFound:
		return fs.ErrNotExist
	case codes.PermissionDenied, codes.Unauthenticated:
		return fs.ErrPermission
	}
	return nil
}

// Explain returns err, of a call to a node, as an *Error.
func Explain(node string, err error) error {
	var done *Error
	s, ok := status.FromError(err)
	if err == nil || errors.As(err, &done) {
		return err
	}
	if !ok {
		return fmt.Errorf("%s: %w", node, err)
	}
	e := &Error{node, s.Code(), s.Message()}
	switch s.Code() {
	case codes.Unavailable:
		e.Message = unreachable(s.Message())
	case codes.Unimplemented:
		if strings.HasPrefix(e.Message, "unknown ") {
			e.Message = "the node does not know this verb: its version is older than this program's"
		}
	case codes.DeadlineExceeded:
		e.Message = "no answer in time; is it on, and is TCP port " + port + " open to it? --timeout waits longer"
	case codes.PermissionDenied:
		if strings.Contains(e.Message, "has the role") {
			e.Message += "; use a context with that role (--context), or have one made (kiln config client)"
		}
	}
	return e
}

// unreachable says what is behind a connection that was not made. gRPC has only
// text for that.
func unreachable(message string) string {
	for _, known := range []struct{ sign, meaning string }{
		{"its certificate has the fingerprint", ""},
		{"tls: certificate required", "the node asks for a client certificate: it has its configuration already; use a context instead of --insecure"},
		{"tls: unknown certificate authority", "the node does not know the CA of the client certificate; use the context that was made with its configuration"},
		{"tls: expired certificate", "the client certificate has expired or is not valid yet by the node's clock; have a new one made with 'kiln config client', or compare the clocks"},
		{"tls: bad certificate", "the node refuses the client certificate; use the context that was made with its configuration"},
		{"x509: certificate signed by unknown authority", "its certificate is not from the CA of the context; use the context that was made with its configuration, or, if it has none yet, --insecure"},
		{"x509: certificate is valid for", "its certificate is for other names: %s; use one of them, and --endpoint if that does not lead there"},
		{"x509: cannot validate certificate for", "its certificate does not name it: %s; use its name, and --endpoint if that does not lead there"},
		{"connection refused", "nothing listens there: the API is not up, or it is no node"},
		{"no route to host", "no route to host; is it on?"},
		{"no such host", "there is no host of that name"},
		{"broken pipe", "the node ended the connection, as it does when it refuses the client certificate; its log says why"},
		{"connection reset by peer", "the node ended the connection, as it does when it refuses the client certificate; its log says why"},
		{"i/o timeout", "no answer; is it on, and is TCP port " + port + " open to it?"},
	} {
		i := strings.Index(message, known.sign)
		switch {
		case i < 0:
		case known.meaning == "":
			return strings.TrimRight(message[i:], `"`)
		case strings.Contains(known.meaning, "%s"):
			return fmt.Sprintf(known.meaning, strings.TrimRight(message[i:], `"`))
		default:
			return known.meaning
		}
	}
	return message
}
