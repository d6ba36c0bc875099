// Asks early-signal for the probability of one row.
//
//	client ADDRESS SERVICE_CONFIG VERSION ROW EXPECTED
package main

import (
	"context"
	"fmt"
	"log"
	"math"
	"os"
	"strconv"
	"time"

	sconcev1 "github.com/sconce-serving/sconce/proto/sconce/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // without it the service config's healthCheckConfig is ignored
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
)

func main() {
	address, configFile, version, rowJSON := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	expected := must(strconv.ParseFloat(os.Args[5], 64))

	config := string(must(os.ReadFile(configFile)))
	connection := must(grpc.NewClient("dns:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(config)))
	defer connection.Close()

	row := &structpb.Struct{}
	must(row, protojson.Unmarshal([]byte(rowJSON), row)) // null is a missing value
	request := &sconcev1.PredictRequest{
		Model:  "early-signal",
		Select: &sconcev1.PredictRequest_Version{Version: version},
		Rows:   []*structpb.Struct{row},
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	response := must(sconcev1.NewInferenceClient(connection).Predict(ctx, request))

	probability := response.Rows[0].Fields["probability"].GetNumberValue()
	fmt.Printf("%s %s: probability %.16g\n", response.Served.Model, response.Served.Version, probability)
	if math.Abs(probability-expected) > 1e-12*math.Abs(expected) {
		log.Fatalf("expected %.16g", expected)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
