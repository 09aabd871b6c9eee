//go:build linux

package containers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	transfertypes "github.com/containerd/containerd/api/types/transfer"
	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kilnhq/kiln/machine/registry"
)

// pull has containerd get an image, as it is said in a directory how registries are
// reached, and with the credentials in a file, if that is there.
func (c *Client) pull(ctx context.Context, name, hosts, credentials string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := &transfertypes.OCIRegistry{Reference: name, Resolver: &transfertypes.RegistryResolver{HostDir: hosts}}
	data, err := os.ReadFile(credentials)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		known := map[string]registry.Credentials{}
		if err := json.Unmarshal(data, &known); err != nil {
			return fmt.Errorf("%s: %w", credentials, err)
		}
		from.Resolver.AuthStream = "kiln-pull-" + uuid.NewString()
		stream, err := c.openStream(ctx, from.Resolver.AuthStream)
		if err != nil {
			return err
		}
		go authenticate(stream, known)
	}
	return c.move(ctx, from, store(name))
}

// authenticate tells containerd the credentials for the hosts that it asks for,
// until it asks no more.
func authenticate(stream grpc.BidiStreamingClient[anypb.Any, anypb.Any], known map[string]registry.Credentials) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		var asked transfertypes.AuthRequest
		if err := proto.Unmarshal(m.GetValue(), &asked); err != nil {
			return
		}
		answer := &transfertypes.AuthResponse{}
		switch have := known[asked.GetHost()]; {
		case have.IdentityToken != "":
			answer.AuthType, answer.Secret = transfertypes.AuthType_REFRESH, have.IdentityToken
		case have.Username != "":
			answer.AuthType, answer.Username, answer.Secret = transfertypes.AuthType_CREDENTIALS, have.Username, have.Password
		}
		said, err := wrap(answer)
		if err != nil {
			return
		}
		if err := stream.Send(said); err != nil {
			return
		}
	}
}
